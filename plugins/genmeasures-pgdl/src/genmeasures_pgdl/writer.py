"""Writing networks and data in the format of PGDL tasks."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from genmeasures.plugin import DataError, ModelError, write_atomically
from genmeasures_pgdl.configs import METRICS
from genmeasures_pgdl.network import KerasLayer, build_network
from genmeasures_pgdl.tfrecord import write_shard

_KERAS_VERSION = "2.4.0"
"""Of the format: the version that wrote the competition's files."""


def write_model(folder: Path, config: Mapping[str, Any], trained: nn.Module, initial: nn.Module) -> None:
    """Write ``config.json``, ``weights.hdf5`` and ``weights_init.hdf5`` of one model into a folder.

    config: an architecture in the competition's form, {"model_config": […], "input_shape": […]}.
    trained, initial: networks made from it by :func:`build_network`. Raises ModelError where a
    network does not fit the architecture.
    """
    layers = build_network(json.loads(json.dumps(config))).layers
    folder.mkdir(parents=True, exist_ok=True)
    _write_weights(folder / "weights.hdf5", layers, trained)
    _write_weights(folder / "weights_init.hdf5", layers, initial)
    _write_json(folder / "config.json", config)


def write_split(folder: Path, inputs: Tensor, classes: Tensor, per_shard: int = 1000) -> None:
    """Write shards of one split into a folder: inputs (N, C, *S) or (N, F) as float32, classes (N,).

    Raises DataError where lengths differ, or there is nothing to write.
    """
    if len(inputs) != len(classes) or not len(inputs):
        raise DataError(f"{folder}: {len(inputs)} inputs and {len(classes)} classes, as many of both are needed")
    folder.mkdir(parents=True, exist_ok=True)
    last = inputs.movedim(1, -1) if inputs.dim() > 2 else inputs
    for number, start in enumerate(range(0, len(inputs), per_shard)):
        rows = slice(start, start + per_shard)
        write_shard(
            folder / f"shard_{number}.tfrecord",
            last[rows].contiguous().numpy().astype(np.float32),
            classes[rows].numpy().astype(np.int64),
        )


def write_model_configs(
    path: Path,
    hparams: Mapping[str, Mapping[str, float | int | str | bool]],
    metrics: Mapping[str, Mapping[str, float]],
) -> None:
    """Write what is known of models by id: hyperparameters, and metrics by our names (``train_accuracy``, …)."""
    values: dict[str, list[Any]] = {}
    for known in hparams.values():
        for name, value in known.items():
            values.setdefault(name, [])
            if value not in values[name]:
                values[name].append(value)
    theirs = {ours: name for name, ours in METRICS.items()}
    content = {
        number: {
            "hparams": {
                name: {"possible_values": sorted(values[name], key=_order), "current_value": value}
                for name, value in known.items()
            },
            "metrics": {theirs[name]: value for name, value in metrics[number].items() if name in theirs},
        }
        for number, known in hparams.items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    _write_json(path, content)


def _order(value: Any) -> tuple[bool, Any]:
    """Numbers by size, before words."""
    return isinstance(value, str), value


def _write_weights(path: Path, layers: Sequence[KerasLayer], module: nn.Module) -> None:
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        file.attrs["layer_names"] = np.array([layer.name.encode() for layer in layers])
        file.attrs["backend"], file.attrs["keras_version"] = b"tensorflow", _KERAS_VERSION.encode()
        for layer in layers:
            group = file.create_group(layer.name)
            arrays = _arrays(layer, module)
            names = [f"{layer.name}/{name}:0".encode() for name in arrays]
            group.attrs["weight_names"] = np.array(names) if names else np.zeros(0)
            for name, value in zip(names, arrays.values(), strict=True):
                group.create_dataset(name.decode(), data=value)
    # HDF5 itself can bring the process down when the disk is full.
    write_atomically(path, content.getvalue())


def _arrays(layer: KerasLayer, network: nn.Module) -> dict[str, NDArray[np.float32]]:
    """Keras's arrays of a layer: (out, in, *window) becomes (*window, in, out)."""
    if not layer.weights:
        return {}
    state: dict[str, Tensor] = {}
    module = getattr(network, layer.name, None)
    if isinstance(module, nn.Module):
        state = {name: value.detach().cpu().float() for name, value in module.state_dict().items()}
    ours = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}
    made = {}
    for name, shape in layer.weights.items():
        value = state.get(ours.get(name, "weight" if name == "kernel" else name))
        if value is None:
            raise ModelError(f"the network has no {name} of a layer {layer.name!r}")
        if name == "kernel":
            # A Dense layer at every position is a convolution with a window of 1.
            value = value.flatten(1) if len(shape) == 2 else value
            value = value.movedim((0, 1), (-1, -2))
        if tuple(value.shape) != shape:
            raise ModelError(f"{name} of the layer {layer.name!r} has the shape {tuple(value.shape)}, not {shape}")
        made[name] = np.ascontiguousarray(torch.clone(value).numpy())
    return made


def _write_json(path: Path, content: Any) -> None:
    write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())
