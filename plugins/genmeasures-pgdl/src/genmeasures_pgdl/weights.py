"""Weights of Keras models from HDF5 files: one group per layer, in the order given by an attribute."""

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
"""Largest compression ratio of real weights; a larger one means a file made to fill the memory."""
_NORM = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}


def load(network: Network, path: Path) -> nn.Module:
    """Load weights into a network.

    Layers are matched by position, since their names may differ between the files of a model.

    Args:
        network: an architecture; its module receives the weights.
        path: the file ``weights.hdf5`` or ``weights_init.hdf5`` of a model.

    Returns:
        The module, on the CPU and in evaluation mode. Inputs are float32 (B, C, *S) or (B, F), outputs are logits.

    Raises:
        ModelError: the file cannot be read or does not fit the architecture; the message names the file and the layer.

    Example:
        >>> import tempfile
        >>> from genmeasures_pgdl.network import build_network
        >>> from genmeasures_pgdl.writer import write_model
        >>> config = {"model_config": [{"layer_name": "Dense", "units": 2}], "input_shape": [3]}
        >>> model = nn.Sequential()
        >>> model.add_module("dense", nn.Linear(3, 2))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_model(Path(folder), config, model, model)
        ...     loaded = load(build_network(config), Path(folder) / "weights.hdf5")
        >>> torch.equal(loaded.dense.weight, model.dense.weight)
        True
    """
    try:
        with h5py.File(path, "r") as file:
            arrays = _read(file, [layer for layer in network.layers if layer.weights])
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error
    except FileNotFoundError as error:
        raise ModelError(f"there is no file {path}") from error
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        # h5py raises all of these for damaged files.
        raise ModelError(f"{path} is damaged or not an HDF5 file: {error}") from error
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
    """Make the constant scale or center of a normalization layer a buffer: it is not a parameter of the network."""
    for name in ("gamma", "beta"):
        if name not in parts:
            value = getattr(norm, _NORM[name]).detach()
            delattr(norm, _NORM[name])
            norm.register_buffer(_NORM[name], value)


def _read(file: h5py.File, layers: list[KerasLayer]) -> list[tuple[KerasLayer, dict[str, NDArray[np.float32]]]]:
    """Arrays of each layer with weights, by name; shapes are checked against the architecture before reading."""
    groups = []
    for name in _names(file, "layer_names"):
        group = _inside(file, name)
        if not isinstance(group, h5py.Group):
            raise ModelError(f"layer {name!r} must be an HDF5 group, got {type(group).__name__}")
        if paths := _names(group, "weight_names"):
            groups.append((name, group, paths))
    if len(groups) != len(layers):
        raise ModelError(
            f"expected {len(layers)} layers with weights as in the architecture, got {len(groups)} "
            f"({', '.join(name for name, _, _ in groups[:8])})"
        )
    return [
        (layer, _arrays(group, paths, layer, name)) for layer, (name, group, paths) in zip(layers, groups, strict=True)
    ]


def _arrays(group: h5py.Group, paths: list[str], layer: KerasLayer, name: str) -> dict[str, NDArray[np.float32]]:
    """The float32 arrays of one layer, by name."""
    by_name = {path.rpartition("/")[2].partition(":")[0]: path for path in paths}
    if set(by_name) != set(layer.weights) or len(by_name) != len(paths):
        raise ModelError(
            f"layer {name!r} ({layer.kind}): expected the arrays {', '.join(sorted(layer.weights))}, "
            f"got {', '.join(sorted(by_name))}"
        )
    arrays = {}
    for array, shape in layer.weights.items():
        data = _inside(group, by_name[array])
        # External data lie outside the file, and virtual data are computed on reading.
        if not isinstance(data, h5py.Dataset) or data.external or data.is_virtual:
            raise ModelError(f"layer {name!r}: {by_name[array]} is not an array stored in this file")
        if data.shape != shape:
            raise ModelError(f"layer {name!r} ({layer.kind}): {array} must have the shape {shape}, got {data.shape}")
        if data.id.get_storage_size() * _MOST_COMPRESSED < data.size * data.dtype.itemsize:
            raise ModelError(f"layer {name!r}: the file does not contain the values of {by_name[array]}")
        if data.dtype.kind != "f":
            raise ModelError(f"layer {name!r}: {array} must be floating point, got {data.dtype}")
        arrays[array] = np.asarray(data, dtype=np.float32)
    return arrays


def _inside(group: h5py.Group, path: str) -> Any:
    """The object at a path, following only hard links, which cannot leave the file."""
    for part in path.split("/"):
        if not isinstance(group, h5py.Group) or not isinstance(group.get(part, getlink=True), h5py.HardLink):
            raise ModelError(f"{path!r} is missing")
        group = group[part]
    return group


def _names(group: h5py.Group, attribute: str) -> list[str]:
    """A list of names: fixed-length bytes in old files, strings in newer ones."""
    if attribute not in group.attrs:
        raise ModelError(f"the attribute {attribute} is missing: this is not a file of Keras weights")
    values = np.atleast_1d(group.attrs[attribute])
    return [value.decode("utf-8") if isinstance(value, bytes) else str(value) for value in values.ravel().tolist()]


def _converted(module: nn.Module, parts: dict[str, NDArray[np.float32]]) -> dict[str, Tensor]:
    """The state of a module from Keras's arrays: (*window, in, out) becomes (out, in, *window)."""
    tensors = {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in parts.items()}
    if "moving_mean" not in tensors:
        kernel = tensors["kernel"].movedim((-1, -2), (0, 1))
        dims = 2 if isinstance(module, nn.Linear) else kernel.dim()
        if not isinstance(module, nn.Linear) and kernel.dim() == 2:
            # A Dense layer at every position is a convolution with a window of 1.
            assert isinstance(module.weight, Tensor)
            dims = module.weight.dim()
        kernel = kernel.reshape(*kernel.shape, *[1] * (dims - kernel.dim())).contiguous()
        return {"weight": kernel, **({"bias": tensors["bias"]} if "bias" in tensors else {})}
    channels = len(tensors["moving_mean"])
    state = {"weight": torch.ones(channels), "bias": torch.zeros(channels)}
    state |= {_NORM[name]: value for name, value in tensors.items()}
    return {**state, "num_batches_tracked": torch.zeros((), dtype=torch.int64)}


__all__ = ["load"]
