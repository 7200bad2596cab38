"""A Keras architecture, as config.json describes it, as a network of PyTorch.

Names of layers are looked up in a table of what is supported, never anywhere else. Shapes are followed
layer by layer, for "same" padding depends on them, and so that a network that cannot be is refused
before any memory is taken: modules are made without storage (``device="meta"``).
"""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import nn

from genmeasures.plugin import ModelError, nearest
from genmeasures_pgdl import modules
from genmeasures_pgdl.options import LARGEST, Options, whole

Shape: TypeAlias = tuple[int, ...]
"""Of one input, channels first: (C, *S)."""

_LARGEST_TENSOR = 2**31
_MOST_LAYERS = 10_000
_LARGEST_FILE = 2**24
"""Bytes of a config.json."""


@dataclass(frozen=True)
class KerasLayer:
    """One layer of the file, and the modules that it became."""

    kind: str
    """Its name in the file, "Conv2D"."""
    name: str
    """Keras's own, "conv2d_1", which the module with the weights has too."""
    weights: dict[str, Shape] = field(default_factory=dict)
    """Shapes of its arrays in Keras's order of axes by name, in Keras's order of arrays."""


@dataclass(frozen=True)
class Network:
    """An architecture without its weights."""

    module: nn.Sequential
    """On the meta device."""
    layers: list[KerasLayer]
    input_shape: Shape


def read_network(path: Path) -> Network:
    """The architecture in a config.json. Raises ModelError naming the file and the layer."""
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise ModelError(f"{path} is larger than {_LARGEST_FILE} bytes: not the description of a network")
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not JSON: {error}") from error
    try:
        return build_network(content)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error


def build_network(content: Any) -> Network:
    """The architecture that the content of a config.json describes. Raises ModelError naming the layer."""
    layers = content.get("model_config") if isinstance(content, Mapping) else None
    shape = content.get("input_shape") if isinstance(content, Mapping) else None
    if not isinstance(layers, list) or not layers:
        raise ModelError("model_config must be a list of layers")
    if len(layers) > _MOST_LAYERS:
        raise ModelError(f"it has {len(layers)} layers, more than any real network")
    if not isinstance(shape, list) or not 1 <= len(shape) <= 4:
        raise ModelError(f"input_shape is {shape!r}, not a list of 1 to 4 sizes")
    try:
        sizes = tuple(whole(one, "size", 1) for one in shape)
    except ModelError as error:
        raise ModelError(f"input_shape: {error}") from error
    builder = _Builder((sizes[-1], *sizes[:-1]))
    for place, given in enumerate(layers):
        kind = given.get("layer_name") if isinstance(given, Mapping) else None
        if not isinstance(kind, str):
            raise ModelError(f"layer {place}: layer_name is missing")
        try:
            builder.add(kind, {name: value for name, value in given.items() if name != "layer_name"})
        except ModelError as error:
            raise ModelError(f"layer {place} ({kind}): {error}") from error
    return Network(nn.Sequential(builder.modules), builder.layers, (sizes[-1], *sizes[:-1]))


class _Builder:
    """Follows the shape from layer to layer."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.modules: OrderedDict[str, nn.Module] = OrderedDict()
        self.layers: list[KerasLayer] = []
        self._counts: dict[str, int] = {}
        self._weights = 0

    def add(self, kind: str, given: Mapping[str, Any]) -> None:
        if kind not in _LAYERS:
            raise ModelError(f"this layer is not supported{nearest(kind, _LAYERS)}")
        make, dims = _LAYERS[kind]
        if dims is not None and len(self.shape) != dims + 1:
            raise ModelError(f"its input has {len(self.shape) - 1} spatial dimensions, {dims} are needed")
        options = Options(given)
        options.take("data_format", None)
        if given.get("data_format") not in (None, "channels_last"):
            raise ModelError(f"its data_format is {given['data_format']!r}; only channels_last is supported")
        name = self._name(kind)
        with torch.device("meta"):
            weights = make(self, name, options)
        options.done()
        if min(self.shape) < 1:
            raise ModelError(f"nothing is left of its input: the output would have the shape {self.shape}")
        for what, shape in {**weights, "output": self.shape}.items():
            _check_size(what, shape)
        self._weights += sum(map(prod, weights.values()))
        if self._weights > _LARGEST_TENSOR:
            raise ModelError(f"up to it there are {self._weights} weights, more than any real network has")
        self.layers.append(KerasLayer(kind, name, weights))

    def _name(self, kind: str) -> str:
        """As Keras names layers: conv2d, conv2d_1, …, re_lu."""
        base = re.sub(r"([a-z])([A-Z])", r"\1_\2", re.sub(r"(.)([A-Z][a-z0-9]+)", r"\1_\2", kind)).lower()
        count = self._counts.get(base, 0)
        self._counts[base] = count + 1
        return f"{base}_{count}" if count else base

    def put(self, name: str, module: nn.Module) -> None:
        self.modules[name] = module

    def activate(self, name: str, options: Options) -> None:
        """The activation that a layer has of its own."""
        module = _activation(options)
        if module is not None:
            self.put(f"{name}_activation", module)


_Make: TypeAlias = Callable[[_Builder, str, Options], dict[str, Shape]]

_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "elu": nn.ELU,
    "selu": nn.SELU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "softplus": nn.Softplus,
    "softsign": nn.Softsign,
    "swish": nn.SiLU,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "softmax": lambda: nn.Softmax(1),
}


def _activation(options: Options) -> nn.Module | None:
    name = options.take("activation", None)
    if name is None or name == "linear":
        return None
    if not isinstance(name, str) or name not in _ACTIVATIONS:
        raise ModelError(f"the activation {name!r} is not supported{nearest(str(name), ['linear', *_ACTIVATIONS])}")
    return _ACTIVATIONS[name]()


def _dense(builder: _Builder, name: str, options: Options) -> dict[str, Shape]:
    units, bias = options.size("units"), options.flag("use_bias", True)
    channels, *spatial = builder.shape
    # Keras applies a Dense layer to the last axis, at every position.
    module = (
        modules.CONV[len(spatial)](channels, units, 1, bias=bias) if spatial else nn.Linear(channels, units, bias=bias)
    )
    builder.put(name, module)
    builder.activate(name, options)
    builder.shape = (units, *spatial)
    return {"kernel": (channels, units), **({"bias": (units,)} if bias else {})}


def _conv(builder: _Builder, name: str, options: Options) -> dict[str, Shape]:
    channels, *spatial = builder.shape
    dims = len(spatial)
    filters, bias, groups = options.size("filters"), options.flag("use_bias", True), options.size("groups", 1)
    window = options.sizes("kernel_size", None, dims)
    strides, dilation = options.sizes("strides", 1, dims), options.sizes("dilation_rate", 1, dims)
    if channels % groups or filters % groups:
        raise ModelError(f"its {groups} groups do not divide {channels} channels and {filters} filters")
    effective = tuple((wide - 1) * rate + 1 for wide, rate in zip(window, dilation, strict=True))
    padding = _padding(options, builder.shape, effective, strides)
    _check_size("kernel", (*window, channels // groups, filters))
    even = modules.symmetric(padding)
    if even is None:
        builder.put(f"{name}_padding", modules.Pad(padding))
    builder.put(
        name,
        modules.CONV[dims](
            channels,
            filters,
            window,  # type: ignore[arg-type]
            strides,  # type: ignore[arg-type]
            even or 0,  # type: ignore[arg-type]
            dilation,  # type: ignore[arg-type]
            groups,
            bias,
        ),
    )
    builder.activate(name, options)
    builder.shape = (filters, *modules.output_sizes(spatial, padding, effective, strides))
    kernel = (*window, channels // groups, filters)
    return {"kernel": kernel, **({"bias": (filters,)} if bias else {})}


def _padding(options: Options, shape: Shape, window: Shape, strides: Shape) -> modules.Padding:
    channels, *spatial = shape
    if options.choice("padding", "valid", ("valid", "same")) == "valid":
        return ((0, 0),) * len(spatial)
    padding = modules.same_padding(spatial, window, strides)
    _check_size("padded input", (channels, *(size + sum(pad) for size, pad in zip(spatial, padding, strict=True))))
    return padding


def _check_size(what: str, shape: Shape) -> None:
    """Raise ModelError for a tensor that is larger than any real network's."""
    if prod(shape) > _LARGEST_TENSOR:
        raise ModelError(f"its {what} of shape {shape} is larger than any real network's")


def _max_pool(builder: _Builder, name: str, options: Options) -> dict[str, Shape]:
    channels, *spatial = builder.shape
    window, strides, padding = _pool(options, builder.shape)
    even = modules.symmetric(padding)
    if even is None or any(2 * pad > wide for pad, wide in zip(even, window, strict=True)):
        builder.put(f"{name}_padding", modules.Pad(padding, float("-inf")))
        even = None
    builder.put(name, modules.MAX_POOL[len(spatial)](window, strides, even or 0))
    builder.shape = (channels, *modules.output_sizes(spatial, padding, window, strides))
    return {}


def _average_pool(builder: _Builder, name: str, options: Options) -> dict[str, Shape]:
    channels, *spatial = builder.shape
    window, strides, padding = _pool(options, builder.shape)
    plain = not any(map(any, padding))
    module = modules.AVERAGE_POOL[len(spatial)](window, strides) if plain else None
    builder.put(name, module or modules.PaddedAverage(window, strides, padding))
    builder.shape = (channels, *modules.output_sizes(spatial, padding, window, strides))
    return {}


def _pool(options: Options, shape: Shape) -> tuple[Shape, Shape, modules.Padding]:
    """Window, strides and padding of a pooling layer."""
    window = options.sizes("pool_size", 2, len(shape) - 1)
    given = options.take("strides", None)
    strides = window if given is None else Options({"strides": given}).sizes("strides", None, len(shape) - 1)
    return window, strides, _padding(options, shape, window, strides)


def _global_average(builder: _Builder, name: str, options: Options) -> dict[str, Shape]:
    builder.put(name, modules.GlobalAverage())
    builder.shape = builder.shape[:1]
    return {}


def _global_max(builder: _Builder, name: str, options: Options) -> dict[str, Shape]:
    builder.put(name, modules.GlobalMax())
    builder.shape = builder.shape[:1]
    return {}


def _flatten(builder: _Builder, name: str, options: Options) -> dict[str, Shape]:
    builder.put(name, modules.Flatten())
    builder.shape = (prod(builder.shape),)
    return {}


def _reshape(builder: _Builder, name: str, options: Options) -> dict[str, Shape]:
    given = options.take("target_shape", None)
    if not isinstance(given, list) or not 1 <= len(given) <= 4:
        raise ModelError(f"its target_shape is {given!r}, not a list of 1 to 4 sizes")
    sizes = [-1 if one == -1 else whole(one, "target_shape", 1) for one in given]
    rest = prod(size for size in sizes if size != -1)
    if sizes.count(-1) > 1 or prod(builder.shape) % rest or (-1 not in sizes and prod(builder.shape) != rest):
        raise ModelError(f"its target_shape {given} does not fit an input of {prod(builder.shape)} elements")
    shape = tuple(prod(builder.shape) // rest if size == -1 else size for size in sizes)
    builder.put(name, modules.Reshape(shape))
    builder.shape = (shape[-1], *shape[:-1])
    return {}


def _zero_padding(builder: _Builder, name: str, options: Options) -> dict[str, Shape]:
    dims = len(builder.shape) - 1
    given = options.take("padding", 1)
    if dims == 1 and isinstance(given, list) and len(given) == 2:
        given = [given]
    each = given if isinstance(given, list) else [given] * dims
    if len(each) != dims:
        raise ModelError(f"its padding is {given!r}, where {dims} entries are needed")
    pairs = [one if isinstance(one, list) else [one, one] for one in each]
    if any(len(pair) != 2 for pair in pairs):
        raise ModelError(f"its padding is {given!r}, not pairs of numbers")
    padding = tuple((whole(before, "padding", 0), whole(after, "padding", 0)) for before, after in pairs)
    builder.put(name, modules.Pad(padding))
    channels, *spatial = builder.shape
    builder.shape = (channels, *(size + sum(pad) for size, pad in zip(spatial, padding, strict=True)))
    return {}


def _dropout(builder: _Builder, name: str, options: Options) -> dict[str, Shape]:
    rate = options.number("rate", 0.5)
    if not 0 <= rate <= 1:
        raise ModelError(f"its rate is {rate}, not from 0 to 1")
    builder.put(name, nn.Dropout(rate))
    return {}


def _batch_norm(builder: _Builder, name: str, options: Options) -> dict[str, Shape]:
    channels, *spatial = builder.shape
    axis = options.take("axis", -1)
    axis = axis[0] if isinstance(axis, list) and len(axis) == 1 else axis
    if axis not in (-1, len(builder.shape)):
        raise ModelError(f"its axis is {axis!r}; only the last one, the channels, is supported")
    epsilon = options.number("epsilon", 1e-3)
    if epsilon < 0:
        raise ModelError(f"its epsilon is {epsilon}, below 0")
    scale, center = options.flag("scale", True), options.flag("center", True)
    builder.put(name, modules.NORM[len(spatial)](channels, eps=epsilon))
    names = ["gamma"] * scale + ["beta"] * center + ["moving_mean", "moving_variance"]
    return dict.fromkeys(names, (channels,))


def _activation_layer(builder: _Builder, name: str, options: Options) -> dict[str, Shape]:
    builder.put(name, _activation(options) or nn.Identity())
    return {}


def _relu(builder: _Builder, name: str, options: Options) -> dict[str, Shape]:
    highest, slope = options.take("max_value", None), options.number("negative_slope", 0.0)
    if options.number("threshold", 0.0) != 0:
        raise ModelError("a threshold other than 0 is not supported")
    if highest is not None and slope:
        raise ModelError("max_value and negative_slope together are not supported")
    top = Options({"max_value": highest}).number("max_value", 0.0) if highest is not None else None
    if top is not None and top <= 0:
        raise ModelError(f"its max_value is {top}, not above 0")
    if top is not None:
        builder.put(name, nn.ReLU6() if top == 6 else nn.Hardtanh(0.0, top))
    else:
        builder.put(name, nn.LeakyReLU(slope) if slope else nn.ReLU())
    return {}


def _leaky_relu(builder: _Builder, name: str, options: Options) -> dict[str, Shape]:
    # Newer versions of Keras call it negative_slope.
    builder.put(name, nn.LeakyReLU(options.number("alpha", options.number("negative_slope", 0.3))))
    return {}


def _softmax(builder: _Builder, name: str, options: Options) -> dict[str, Shape]:
    if options.take("axis", -1) != -1:
        raise ModelError("only the last axis, the channels, is supported")
    builder.put(name, nn.Softmax(1))
    return {}


_LAYERS: dict[str, tuple[_Make, int | None]] = {
    "Dense": (_dense, None),
    "Flatten": (_flatten, None),
    "Reshape": (_reshape, None),
    "Dropout": (_dropout, None),
    "BatchNormalization": (_batch_norm, None),
    "Activation": (_activation_layer, None),
    "ReLU": (_relu, None),
    "LeakyReLU": (_leaky_relu, None),
    "Softmax": (_softmax, None),
    **{
        f"{name}{dims}D": (make, dims)
        for dims in (1, 2, 3)
        for name, make in (
            ("Conv", _conv),
            ("MaxPooling", _max_pool),
            ("MaxPool", _max_pool),
            ("AveragePooling", _average_pool),
            ("AvgPool", _average_pool),
            ("GlobalAveragePooling", _global_average),
            ("GlobalAvgPool", _global_average),
            ("GlobalMaxPooling", _global_max),
            ("GlobalMaxPool", _global_max),
            ("SpatialDropout", _dropout),
            ("ZeroPadding", _zero_padding),
        )
    },
}
"""What makes each layer, and how many spatial dimensions it needs; None: any."""

__all__ = ["LARGEST", "KerasLayer", "Network", "Shape", "build_network", "read_network"]
