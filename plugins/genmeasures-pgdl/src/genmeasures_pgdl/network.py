"""Keras architectures (``config.json``) as PyTorch networks.

Layers are looked up by name in a table of supported ones and nowhere else, since the file is not trusted. Shapes are
inferred layer by layer: "same" padding depends on them, and an impossible network is refused before any memory is
allocated, because modules are created without storage (``device="meta"``).
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
from genmeasures_pgdl.options import Options, integer

Shape: TypeAlias = tuple[int, ...]
"""Shape of one input or array; of an input, channels first: (C, *S)."""

_LARGEST_TENSOR = 2**31
_MOST_LAYERS = 10_000
_LARGEST_FILE = 2**24
"""Largest size of a config.json in bytes."""


@dataclass(frozen=True)
class KerasLayer:
    """One layer of a Keras architecture.

    Attributes:
        kind: class of the layer in the file, ``"Conv2D"``.
        name: name of the layer in Keras, ``"conv2d_1"``; the module that holds its weights has the same name.
        weights: shapes of its arrays by name, with the order of arrays and axes of Keras.
    """

    kind: str
    name: str
    weights: dict[str, Shape] = field(default_factory=dict)


@dataclass(frozen=True)
class Network:
    """An architecture without weights.

    Attributes:
        module: the network, on the meta device.
        layers: the layers of the file in order.
        input_shape: shape of one input, channels first.
    """

    module: nn.Sequential
    layers: list[KerasLayer]
    input_shape: Shape


def read_network(path: Path) -> Network:
    """Read an architecture from a file.

    Args:
        path: the file ``config.json`` of a model.

    Returns:
        The network without weights.

    Raises:
        ModelError: the file cannot be read, or the architecture is invalid; the message names the file and the layer.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "config.json"
        ...     _ = path.write_text('{"model_config": [{"layer_name": "Flatten"}], "input_shape": [8, 8, 1]}')
        ...     read_network(path).layers
        [KerasLayer(kind='Flatten', name='flatten', weights={})]
    """
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise ModelError(f"{path} must have at most {_LARGEST_FILE} bytes, got {path.stat().st_size}")
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not valid JSON: {error}") from error
    try:
        return build_network(content)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error


def build_network(content: Any) -> Network:
    """Create a network from the content of a ``config.json``.

    Args:
        content: ``{"model_config": [layer, …], "input_shape": [*S, C]}``. Each layer is a dict with its class as
            ``layer_name`` and its keyword arguments.

    Returns:
        The network without weights.

    Raises:
        ModelError: the architecture is invalid or has an unsupported layer or argument; the message names the layer.

    Example:
        >>> layers = [{"layer_name": "Conv2D", "filters": 4, "kernel_size": 3}, {"layer_name": "ReLU"}]
        >>> network = build_network({"model_config": layers, "input_shape": [8, 8, 1]})
        >>> [layer.name for layer in network.layers]
        ['conv2d', 're_lu']
        >>> network.layers[0].weights
        {'kernel': (3, 3, 1, 4), 'bias': (4,)}
    """
    layers = content.get("model_config") if isinstance(content, Mapping) else None
    shape = content.get("input_shape") if isinstance(content, Mapping) else None
    if not isinstance(layers, list) or not layers:
        raise ModelError("model_config must be a list of at least one layer")
    if len(layers) > _MOST_LAYERS:
        raise ModelError(f"model_config must have at most {_MOST_LAYERS} layers, got {len(layers)} layers")
    if not isinstance(shape, list) or not 1 <= len(shape) <= 4:
        raise ModelError(f"input_shape must be a list of 1 to 4 sizes, got {shape!r}")
    try:
        sizes = tuple(integer(size, "size", 1) for size in shape)
    except ModelError as error:
        raise ModelError(f"input_shape: {error}") from error
    builder = _Builder((sizes[-1], *sizes[:-1]))
    for index, layer in enumerate(layers):
        kind = layer.get("layer_name") if isinstance(layer, Mapping) else None
        if not isinstance(kind, str):
            raise ModelError(f"layer {index}: layer_name is missing")
        try:
            builder.add(kind, {name: value for name, value in layer.items() if name != "layer_name"})
        except ModelError as error:
            raise ModelError(f"layer {index} ({kind}): {error}") from error
    return Network(nn.Sequential(builder.modules), builder.layers, (sizes[-1], *sizes[:-1]))


class _Builder:
    """Appends modules and infers the shape from layer to layer."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.modules: OrderedDict[str, nn.Module] = OrderedDict()
        self.layers: list[KerasLayer] = []
        self._counts: dict[str, int] = {}
        self._weights = 0

    def add(self, kind: str, arguments: Mapping[str, Any]) -> None:
        if kind not in _LAYERS:
            raise ModelError(f"this layer is not supported{nearest(kind, _LAYERS)}")
        make, dims = _LAYERS[kind]
        if dims is not None and len(self.shape) != dims + 1:
            raise ModelError(f"the input must have {dims} spatial dimensions, got {len(self.shape) - 1}")
        options = Options(arguments)
        options.take("data_format", None)
        if arguments.get("data_format") not in (None, "channels_last"):
            raise ModelError(f"data_format must be 'channels_last', got {arguments['data_format']!r}")
        name = self._name(kind)
        with torch.device("meta"):
            weights = make(self, name, options)
        options.done()
        if min(self.shape) < 1:
            raise ModelError(f"the output is empty, its shape would be {self.shape}")
        for tensor, shape in {**weights, "output": self.shape}.items():
            _check_size(tensor, shape)
        self._weights += sum(map(prod, weights.values()))
        if self._weights > _LARGEST_TENSOR:
            raise ModelError(
                f"the network must have at most {_LARGEST_TENSOR} weights, got {self._weights} up to this layer"
            )
        self.layers.append(KerasLayer(kind, name, weights))

    def _name(self, kind: str) -> str:
        """The name that Keras gives the layer: conv2d, conv2d_1, …, re_lu."""
        base = re.sub(r"([a-z])([A-Z])", r"\1_\2", re.sub(r"(.)([A-Z][a-z0-9]+)", r"\1_\2", kind)).lower()
        count = self._counts.get(base, 0)
        self._counts[base] = count + 1
        return f"{base}_{count}" if count else base

    def put(self, name: str, module: nn.Module) -> None:
        self.modules[name] = module

    def activate(self, name: str, options: Options) -> None:
        """Append the activation that is an argument of a layer."""
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
        raise ModelError(f"groups must divide {channels} channels and {filters} filters, got {groups}")
    effective = tuple((width - 1) * rate + 1 for width, rate in zip(window, dilation, strict=True))
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


def _check_size(name: str, shape: Shape) -> None:
    """Raise ModelError for a tensor larger than that of any real network."""
    if prod(shape) > _LARGEST_TENSOR:
        raise ModelError(f"the {name} must have at most {_LARGEST_TENSOR} elements, got the shape {shape}")


def _max_pool(builder: _Builder, name: str, options: Options) -> dict[str, Shape]:
    channels, *spatial = builder.shape
    window, strides, padding = _pool(options, builder.shape)
    even = modules.symmetric(padding)
    if even is None or any(2 * pad > width for pad, width in zip(even, window, strict=True)):
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
    argument = options.take("strides", None)
    strides = window if argument is None else Options({"strides": argument}).sizes("strides", None, len(shape) - 1)
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
    target = options.take("target_shape", None)
    if not isinstance(target, list) or not 1 <= len(target) <= 4:
        raise ModelError(f"target_shape must be a list of 1 to 4 sizes, got {target!r}")
    sizes = [-1 if size == -1 else integer(size, "target_shape", 1) for size in target]
    rest = prod(size for size in sizes if size != -1)
    if sizes.count(-1) > 1 or prod(builder.shape) % rest or (-1 not in sizes and prod(builder.shape) != rest):
        raise ModelError(f"target_shape must have {prod(builder.shape)} elements as the input, got {target}")
    shape = tuple(prod(builder.shape) // rest if size == -1 else size for size in sizes)
    builder.put(name, modules.Reshape(shape))
    builder.shape = (shape[-1], *shape[:-1])
    return {}


def _zero_padding(builder: _Builder, name: str, options: Options) -> dict[str, Shape]:
    dims = len(builder.shape) - 1
    argument = options.take("padding", 1)
    if dims == 1 and isinstance(argument, list) and len(argument) == 2:
        argument = [argument]
    per_dimension = argument if isinstance(argument, list) else [argument] * dims
    if len(per_dimension) != dims:
        raise ModelError(f"padding must have {dims} entries, got {argument!r}")
    pairs = [entry if isinstance(entry, list) else [entry, entry] for entry in per_dimension]
    if any(len(pair) != 2 for pair in pairs):
        raise ModelError(f"padding must be pairs of integers, got {argument!r}")
    padding = tuple((integer(before, "padding", 0), integer(after, "padding", 0)) for before, after in pairs)
    builder.put(name, modules.Pad(padding))
    channels, *spatial = builder.shape
    builder.shape = (channels, *(size + sum(pad) for size, pad in zip(spatial, padding, strict=True)))
    return {}


def _dropout(builder: _Builder, name: str, options: Options) -> dict[str, Shape]:
    rate = options.number("rate", 0.5)
    if not 0 <= rate <= 1:
        raise ModelError(f"rate must be from 0 to 1, got {rate}")
    builder.put(name, nn.Dropout(rate))
    return {}


def _batch_norm(builder: _Builder, name: str, options: Options) -> dict[str, Shape]:
    channels, *spatial = builder.shape
    axis = options.take("axis", -1)
    axis = axis[0] if isinstance(axis, list) and len(axis) == 1 else axis
    if axis not in (-1, len(builder.shape)):
        raise ModelError(f"axis must be the last one, the channels, got {axis!r}")
    epsilon = options.number("epsilon", 1e-3)
    if epsilon < 0:
        raise ModelError(f"epsilon must be at least 0, got {epsilon}")
    scale, center = options.flag("scale", True), options.flag("center", True)
    builder.put(name, modules.NORM[len(spatial)](channels, eps=epsilon))
    names = ["gamma"] * scale + ["beta"] * center + ["moving_mean", "moving_variance"]
    return dict.fromkeys(names, (channels,))


def _activation_layer(builder: _Builder, name: str, options: Options) -> dict[str, Shape]:
    builder.put(name, _activation(options) or nn.Identity())
    return {}


def _relu(builder: _Builder, name: str, options: Options) -> dict[str, Shape]:
    argument, slope = options.take("max_value", None), options.number("negative_slope", 0.0)
    if options.number("threshold", 0.0) != 0:
        raise ModelError("a threshold other than 0 is not supported")
    if argument is not None and slope:
        raise ModelError("max_value together with negative_slope is not supported")
    maximum = Options({"max_value": argument}).number("max_value", 0.0) if argument is not None else None
    if maximum is not None and maximum <= 0:
        raise ModelError(f"max_value must be above 0, got {maximum}")
    if maximum is not None:
        builder.put(name, nn.ReLU6() if maximum == 6 else nn.Hardtanh(0.0, maximum))
    else:
        builder.put(name, nn.LeakyReLU(slope) if slope else nn.ReLU())
    return {}


def _leaky_relu(builder: _Builder, name: str, options: Options) -> dict[str, Shape]:
    # alpha is called negative_slope in newer versions of Keras.
    builder.put(name, nn.LeakyReLU(options.number("alpha", options.number("negative_slope", 0.3))))
    return {}


def _softmax(builder: _Builder, name: str, options: Options) -> dict[str, Shape]:
    if options.take("axis", -1) != -1:
        raise ModelError("axis must be the last one, the channels")
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
"""The function that creates each layer, and the number of spatial dimensions of its input (None: any)."""

__all__ = ["KerasLayer", "Network", "Shape", "build_network", "read_network"]
