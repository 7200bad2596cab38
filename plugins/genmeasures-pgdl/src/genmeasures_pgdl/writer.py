"""Writers of networks, data and metrics in the format of PGDL tasks."""

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
"""Version of Keras stored in the files, that of the competition's files."""


def write_model(folder: Path, config: Mapping[str, Any], trained: nn.Module, initial: nn.Module) -> None:
    """Write one model: ``config.json``, ``weights.hdf5`` and ``weights_init.hdf5``.

    Args:
        folder: folder of the model, ``model_<id>``; it is created if needed.
        config: architecture as in :func:`genmeasures_pgdl.network.build_network`.
        trained: the trained network; submodules are found by the layer names of Keras.
        initial: the network before training.

    Raises:
        ModelError: the architecture is invalid, or a network does not fit it.
        OSError: a file cannot be written.

    Example:
        >>> import tempfile
        >>> config = {"model_config": [{"layer_name": "Dense", "units": 2}], "input_shape": [3]}
        >>> model = build_network(config).module.to_empty(device="cpu")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_model(Path(folder), config, model, model)
        ...     sorted(path.name for path in Path(folder).iterdir())
        ['config.json', 'weights.hdf5', 'weights_init.hdf5']
    """
    layers = build_network(json.loads(json.dumps(config))).layers
    folder.mkdir(parents=True, exist_ok=True)
    _write_weights(folder / "weights.hdf5", layers, trained)
    _write_weights(folder / "weights_init.hdf5", layers, initial)
    _write_json(folder / "config.json", config)


def write_split(folder: Path, inputs: Tensor, classes: Tensor, per_shard: int = 1000) -> None:
    """Write the data of one split as TFRecord shards.

    Args:
        folder: folder of the split, ``dataset_1/train`` or ``dataset_1/test``; it is created if needed.
        inputs: (N, C, *S) or (N, F), stored as float32 with channels last.
        classes: integers (N,).
        per_shard: largest number of records per shard.

    Raises:
        DataError: there are no inputs, or their number is not that of the classes.
        OSError: a file cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_split(Path(folder), torch.zeros(3, 1, 8, 8), torch.tensor([0, 1, 2]), per_shard=2)
        ...     sorted(path.name for path in Path(folder).iterdir())
        ['shard_0.tfrecord', 'shard_1.tfrecord']
    """
    if len(inputs) != len(classes) or not len(inputs):
        raise DataError(
            f"{folder}: expected as many inputs as classes and at least one, got {len(inputs)} and {len(classes)}"
        )
    folder.mkdir(parents=True, exist_ok=True)
    channels_last = inputs.movedim(1, -1) if inputs.dim() > 2 else inputs
    for number, start in enumerate(range(0, len(inputs), per_shard)):
        rows = slice(start, start + per_shard)
        write_shard(
            folder / f"shard_{number}.tfrecord",
            channels_last[rows].contiguous().numpy().astype(np.float32),
            classes[rows].numpy().astype(np.int64),
        )


def write_model_configs(
    path: Path,
    hparams: Mapping[str, Mapping[str, float | int | str | bool]],
    metrics: Mapping[str, Mapping[str, float]],
) -> None:
    """Write ``model_configs.json``: hyperparameters and metrics of all models.

    Args:
        path: the file to write; its folder is created if needed.
        hparams: hyperparameters by model id and name.
        metrics: metrics by model id and name (``train_accuracy``, ``test_accuracy``, ``train_loss``, ``test_loss``);
            other names are left out.

    Raises:
        OSError: the file cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "model_configs.json"
        ...     write_model_configs(path, {"0": {"width": 4}}, {"0": {"train_accuracy": 1.0}})
        ...     json.loads(path.read_text())["0"]["metrics"]
        {'train_acc': 1.0}
    """
    values: dict[str, list[Any]] = {}
    for model_hparams in hparams.values():
        for name, value in model_hparams.items():
            values.setdefault(name, [])
            if value not in values[name]:
                values[name].append(value)
    names = {renamed: name for name, renamed in METRICS.items()}
    content = {
        number: {
            "hparams": {
                name: {"possible_values": sorted(values[name], key=_order), "current_value": value}
                for name, value in model_hparams.items()
            },
            "metrics": {names[name]: value for name, value in metrics[number].items() if name in names},
        }
        for number, model_hparams in hparams.items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    _write_json(path, content)


def _order(value: Any) -> tuple[bool, Any]:
    """Sort key: numbers by value, then strings."""
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
    # Not written by HDF5 itself, which can crash the process when the disk is full.
    write_atomically(path, content.getvalue())


def _arrays(layer: KerasLayer, network: nn.Module) -> dict[str, NDArray[np.float32]]:
    """The arrays of a Keras layer: (out, in, *window) becomes (*window, in, out)."""
    if not layer.weights:
        return {}
    state: dict[str, Tensor] = {}
    module = getattr(network, layer.name, None)
    if isinstance(module, nn.Module):
        state = {name: value.detach().cpu().float() for name, value in module.state_dict().items()}
    renamed = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}
    arrays = {}
    for name, shape in layer.weights.items():
        value = state.get(renamed.get(name, "weight" if name == "kernel" else name))
        if value is None:
            raise ModelError(f"layer {layer.name!r} ({layer.kind}): the network has no {name}")
        if name == "kernel":
            # A Dense layer at every position is a convolution with a window of 1.
            value = value.flatten(1) if len(shape) == 2 else value
            value = value.movedim((0, 1), (-1, -2))
        if tuple(value.shape) != shape:
            raise ModelError(
                f"layer {layer.name!r} ({layer.kind}): {name} must have the shape {shape}, got {tuple(value.shape)}"
            )
        arrays[name] = np.ascontiguousarray(torch.clone(value).numpy())
    return arrays


def _write_json(path: Path, content: Any) -> None:
    write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())


__all__ = ["write_model", "write_model_configs", "write_split"]
