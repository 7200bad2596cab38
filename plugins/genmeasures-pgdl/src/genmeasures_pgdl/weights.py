"""Weights as Keras keeps them in HDF5 files: a group a layer, in the order that an attribute gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from genmeasures.plugin import ModelError
from genmeasures_pgdl.network import KerasLayer, Network

_MOST_COMPRESSED = 1000
"""No real weights are so much smaller in a file: a few bytes must not ask for any amount of memory."""
_NORM = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}


def load(network: Network, path: Path) -> nn.Module:
    """The network with the weights of a file, on the CPU and in evaluation mode.

    Layers are matched by position, since names differ between files of one model. Raises ModelError
    naming the file and the layer.
    """
    try:
        with h5py.File(path, "r") as file:
            arrays = _read(file, [layer for layer in network.layers if layer.weights])
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error
    except FileNotFoundError as error:
        raise ModelError(f"there is no file {path}") from error
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        # All of which h5py raises for one kind of damage or another.
        raise ModelError(f"{path} cannot be read, it may be damaged or not HDF5: {error}") from error
    state: dict[str, Tensor] = {}
    for layer, parts in arrays:
        module = getattr(network.module, layer.name)
        state |= {f"{layer.name}.{key}": value for key, value in _converted(module, parts).items()}
    network.module.load_state_dict(state, assign=True)
    for parameter in network.module.parameters():
        parameter.requires_grad_(True)
    for layer, parts in arrays:
        if "moving_mean" in parts:
            _without_parameters(getattr(network.module, layer.name), parts)
    return network.module.eval()


def _without_parameters(norm: nn.Module, parts: dict[str, NDArray[np.float32]]) -> None:
    """What a normalization without scale or center multiplies by or adds is no parameter of the network."""
    for name in ("gamma", "beta"):
        if name not in parts:
            value = getattr(norm, _NORM[name]).detach()
            delattr(norm, _NORM[name])
            norm.register_buffer(_NORM[name], value)


def _read(file: h5py.File, layers: list[KerasLayer]) -> list[tuple[KerasLayer, dict[str, NDArray[np.float32]]]]:
    """Arrays of each layer with weights, by name, checked against the architecture before they are read."""
    groups = []
    for name in _names(file, "layer_names"):
        group = _inside(file, name)
        if not isinstance(group, h5py.Group):
            raise ModelError(f"the layer {name!r} is not a group")
        if paths := _names(group, "weight_names"):
            groups.append((name, group, paths))
    if len(groups) != len(layers):
        raise ModelError(
            f"{len(groups)} layers have weights ({', '.join(name for name, _, _ in groups[:8])}), "
            f"the architecture has {len(layers)}"
        )
    return [
        (layer, _arrays(group, paths, layer, name)) for layer, (name, group, paths) in zip(layers, groups, strict=True)
    ]


def _arrays(group: h5py.Group, paths: list[str], layer: KerasLayer, name: str) -> dict[str, NDArray[np.float32]]:
    found = {path.rpartition("/")[2].partition(":")[0]: path for path in paths}
    if set(found) != set(layer.weights) or len(found) != len(paths):
        raise ModelError(
            f"layer {name!r} ({layer.kind}) has {', '.join(sorted(found))}, "
            f"the architecture needs {', '.join(sorted(layer.weights))}"
        )
    made = {}
    for what, shape in layer.weights.items():
        data = _inside(group, found[what])
        # Data outside of the file, or made up when they are read, are not a file's own weights.
        if not isinstance(data, h5py.Dataset) or data.external or data.is_virtual:
            raise ModelError(f"layer {name!r}: {found[what]} is not an array of this file")
        if data.shape != shape:
            raise ModelError(f"layer {name!r} ({layer.kind}): {what} has the shape {data.shape}, {shape} is needed")
        if data.id.get_storage_size() * _MOST_COMPRESSED < data.size * data.dtype.itemsize:
            raise ModelError(f"layer {name!r}: the file does not hold the values of {found[what]}")
        if data.dtype.kind != "f":
            raise ModelError(f"layer {name!r}: {what} is of type {data.dtype}, not floating point")
        made[what] = np.asarray(data, dtype=np.float32)
    return made


def _inside(group: h5py.Group, path: str) -> Any:
    """What lies at a path, by links within the file alone."""
    for part in path.split("/"):
        if not isinstance(group, h5py.Group) or not isinstance(group.get(part, getlink=True), h5py.HardLink):
            raise ModelError(f"{path!r} is missing")
        group = group[part]
    return group


def _names(group: h5py.Group, attribute: str) -> list[str]:
    """A list of names, which are fixed-length bytes in old files and strings in newer ones."""
    if attribute not in group.attrs:
        raise ModelError(f"the attribute {attribute} is missing: not the weights of a Keras model")
    values = np.atleast_1d(group.attrs[attribute])
    return [value.decode("utf-8") if isinstance(value, bytes) else str(value) for value in values.ravel().tolist()]


def _converted(module: nn.Module, parts: dict[str, NDArray[np.float32]]) -> dict[str, Tensor]:
    """The state of a module from Keras's arrays: (*window, in, out) becomes (out, in, *window)."""
    tensors = {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in parts.items()}
    if "moving_mean" not in tensors:
        kernel = tensors["kernel"].movedim((-1, -2), (0, 1))
        wanted = 2 if isinstance(module, nn.Linear) else kernel.dim()
        if not isinstance(module, nn.Linear) and kernel.dim() == 2:
            # A Dense layer at every position, which is a convolution with a window of 1.
            assert isinstance(module.weight, Tensor)
            wanted = module.weight.dim()
        kernel = kernel.reshape(*kernel.shape, *[1] * (wanted - kernel.dim())).contiguous()
        return {"weight": kernel, **({"bias": tensors["bias"]} if "bias" in tensors else {})}
    channels = len(tensors["moving_mean"])
    state = {"weight": torch.ones(channels), "bias": torch.zeros(channels)}
    state |= {_NORM[name]: value for name, value in tensors.items()}
    return {**state, "num_batches_tracked": torch.zeros((), dtype=torch.int64)}
