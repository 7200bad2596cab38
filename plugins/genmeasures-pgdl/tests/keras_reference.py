"""Keras's layers as their documentation describes them, in loops over NumPy arrays with channels last."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def forward(config: dict[str, Any], arrays: list[dict[str, Array]], x: Array) -> Array:
    """Outputs of a network for x (B, *S, C); arrays: those of each layer of the config."""
    for given, weights in zip(config["model_config"], arrays, strict=True):
        x = _LAYERS[given["layer_name"].rstrip("123D")](given, weights, x)
        x = activation(given.get("activation"), x)
    return x


def activation(name: str | None, x: Array) -> Array:
    return {None: lambda: x, "linear": lambda: x, "relu": lambda: np.maximum(x, 0), "tanh": lambda: np.tanh(x)}[name]()


def windows(given: dict[str, Any], x: Array, wide: Any, strides: Any, fill: float, rate: Any = 1) -> Callable[..., Any]:
    """A function that applies another to the window (B, *wide, C) at each position."""
    dims = x.ndim - 2
    wide, strides, rate = ([one] * dims if isinstance(one, int) else list(one) for one in (wide, strides, rate))
    sizes, pads = [], []
    for size, w, s, d in zip(x.shape[1:-1], wide, strides, rate, strict=True):
        reach = (w - 1) * d + 1
        if given.get("padding", "valid") == "same":
            number = math.ceil(size / s)
            total = max((number - 1) * s + reach - size, 0)
            pads.append((total // 2, total - total // 2))
        else:
            number = (size - reach) // s + 1
            pads.append((0, 0))
        sizes.append(number)
    padded = np.pad(x, [(0, 0), *pads, (0, 0)], constant_values=fill)

    def apply(function: Callable[[Array], Array]) -> Array:
        made = {}
        for place in itertools.product(*map(range, sizes)):
            cut = tuple(
                slice(p * s, p * s + (w - 1) * d + 1, d) for p, s, w, d in zip(place, strides, wide, rate, strict=True)
            )
            made[place] = function(padded[(slice(None), *cut, slice(None))])
        first = next(iter(made.values()))
        out = np.zeros((len(x), *sizes, first.shape[-1]))
        for place, value in made.items():
            out[(slice(None), *place)] = value
        return out

    return apply


def conv(given: dict[str, Any], weights: dict[str, Array], x: Array) -> Array:
    kernel = weights["kernel"]
    apply = windows(given, x, kernel.shape[:-2], given.get("strides", 1), 0.0, given.get("dilation_rate", 1))
    axes = list(range(1, kernel.ndim))
    return apply(lambda cut: np.tensordot(cut, kernel, (axes, axes_of(kernel)))) + weights.get("bias", 0)


def axes_of(kernel: Array) -> list[int]:
    return list(range(kernel.ndim - 1))


def max_pool(given: dict[str, Any], _: dict[str, Array], x: Array) -> Array:
    wide = given.get("pool_size", 2)
    apply = windows(given, x, wide, given.get("strides", wide), -np.inf)
    return apply(lambda cut: cut.max(axis=tuple(range(1, x.ndim - 1))))


def average_pool(given: dict[str, Any], _: dict[str, Array], x: Array) -> Array:
    wide = given.get("pool_size", 2)
    apply = windows(given, x, wide, given.get("strides", wide), np.nan)
    return apply(lambda cut: np.nanmean(cut, axis=tuple(range(1, x.ndim - 1))))


def batch_norm(given: dict[str, Any], weights: dict[str, Array], x: Array) -> Array:
    scale = weights.get("gamma", 1.0) / np.sqrt(weights["moving_variance"] + given.get("epsilon", 1e-3))
    return (x - weights["moving_mean"]) * scale + weights.get("beta", 0.0)


def leaky(given: dict[str, Any], _: dict[str, Array], x: Array) -> Array:
    return np.where(x > 0, x, given.get("alpha", 0.3) * x)


_LAYERS: dict[str, Callable[[dict[str, Any], dict[str, Array], Array], Array]] = {
    "Dense": lambda given, weights, x: x @ weights["kernel"] + weights.get("bias", 0),
    "Conv": conv,
    "MaxPooling": max_pool,
    "AveragePooling": average_pool,
    "GlobalAveragePooling": lambda given, weights, x: x.mean(axis=tuple(range(1, x.ndim - 1))),
    "GlobalMaxPooling": lambda given, weights, x: x.max(axis=tuple(range(1, x.ndim - 1))),
    "Flatten": lambda given, weights, x: x.reshape(len(x), -1),
    "Reshape": lambda given, weights, x: x.reshape(len(x), *given["target_shape"]),
    "ZeroPadding": lambda given, weights, x: np.pad(x, [(0, 0), *map(tuple, given["padding"]), (0, 0)]),
    "BatchNormalization": batch_norm,
    "LeakyReLU": leaky,
    "ReLU": lambda given, weights, x: np.clip(x, 0, given.get("max_value", np.inf)),
    "Dropout": lambda given, weights, x: x,
    "Activation": lambda given, weights, x: x,
}
