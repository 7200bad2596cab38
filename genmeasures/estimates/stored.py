"""Outputs that users have stored: arrays, or ``.npz`` files."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from genmeasures.errors import DataError, GenmeasuresError, OptionError, nearest
from genmeasures.estimates.outputs import Outputs
from genmeasures.tasks.archives import check_sizes

ARRAYS = ("validation_logits", "validation_labels", "target_logits", "target_labels")
"""Names of the arrays of a file; labels may be left out."""

_SPLITS = ("validation", "target")


def read_stored(
    logits: Mapping[str, Any] | str | Path | Sequence[str | Path],
    validation: ArrayLike | None = None,
    target: ArrayLike | None = None,
) -> tuple[dict[str, Outputs | GenmeasuresError], dict[str, Outputs | GenmeasuresError]]:
    """Read the outputs of several models on both splits.

    Args:
        logits: by model, a pair of arrays (validation logits, target logits), a mapping with these under "validation"
            and "target", or an ``.npz`` file; or one or several ``.npz`` files, or a folder of them, with models named
            like the files. Files have the arrays ``validation_logits``, ``target_logits`` and, if they are not passed,
            ``validation_labels`` and ``target_labels``. Logits are (N, K) or (N, K, *S).
        validation: labels of the validation data, (N,) or (N, *S); a negative label means none. None takes those of the
            files.
        target: labels of the target data, which are only compared with the estimates; None for none.

    Returns:
        Outputs by model on the validation data and on the target data. A model whose outputs cannot be used has the
        error instead.

    Raises:
        OptionError: there is no model, or no such file.

    Example:
        >>> validation, target = read_stored({"net": ([[1.0, 0.0]], [[0.0, 1.0]])}, [0])
        >>> validation["net"].accuracy, target["net"].labels is None
        (100.0, True)
    """
    named = dict(logits) if isinstance(logits, Mapping) else _files(logits)
    if not named:
        raise OptionError("estimate: there are no models: pass a dict of names to logits, or .npz files")
    labels = dict(zip(_SPLITS, (validation, target), strict=True))
    result: tuple[dict[str, Outputs | GenmeasuresError], dict[str, Outputs | GenmeasuresError]] = ({}, {})
    for name, stored in named.items():
        try:
            arrays: Mapping[str, Any] | GenmeasuresError = _arrays(str(name), stored)
        except GenmeasuresError as error:
            arrays = error
        for split, outputs in zip(_SPLITS, result, strict=True):
            outputs[str(name)] = arrays if isinstance(arrays, GenmeasuresError) else _outputs(split, arrays, labels)
    return result


def _outputs(split: str, arrays: Mapping[str, Any], labels: Mapping[str, Any]) -> Outputs | GenmeasuresError:
    own = arrays.get(f"{split}_labels") if labels[split] is None else labels[split]
    try:
        if own is None and split == "validation":
            raise DataError("validation has no labels: pass them as validation=, or store them as validation_labels")
        return Outputs.of(arrays[f"{split}_logits"], own, split)
    except GenmeasuresError as error:
        return error


def _arrays(name: str, stored: Any) -> Mapping[str, Any]:
    """The arrays of one model by the names of :data:`ARRAYS`."""
    if isinstance(stored, str | Path):
        return _load(Path(stored))
    if isinstance(stored, Mapping):
        for key in stored:
            if key not in _SPLITS:
                raise DataError(f"{name}: unknown key {key!r}{nearest(str(key), _SPLITS)}")
        parts = [stored.get(split) for split in _SPLITS]
    elif isinstance(stored, tuple | list) and len(stored) == 2:
        parts = list(stored)
    else:
        raise DataError(
            f"{name}: expected a pair of arrays (validation logits, target logits), a dict with the keys validation "
            f"and target, or an .npz file, got {type(stored).__name__}"
        )
    for split, part in zip(_SPLITS, parts, strict=True):
        if part is None:
            raise DataError(f"{name}: there are no {split} logits")
    return {f"{split}_logits": _numbers(part) for split, part in zip(_SPLITS, parts, strict=True)}


def _numbers(array: Any) -> Any:
    """Tensors on a device, or with a gradient, as arrays."""
    for step in ("detach", "cpu"):
        array = getattr(array, step)() if hasattr(array, step) else array
    if str(getattr(array, "dtype", "")) == "torch.bfloat16":  # NumPy has no such type
        array = array.float()
    return np.asarray(array)


def _files(paths: str | Path | Sequence[str | Path]) -> dict[str, Path]:
    listed = [paths] if isinstance(paths, str | Path) else list(paths)
    files: list[Path] = []
    for path in map(Path, listed):
        found = sorted(path.glob("*.npz")) if path.is_dir() else [path] if path.is_file() else []
        if not found:
            what = f"the folder {path} has no .npz files" if path.is_dir() else f"there is no file or folder {path}"
            raise OptionError(f"estimate: {what}; each model is an .npz file with the arrays {', '.join(ARRAYS)}")
        files += found
    named = {file.stem: file for file in files}
    if len(named) < len(files):
        double = sorted({file.stem for file in files if [other.stem for other in files].count(file.stem) > 1})
        raise OptionError(f"estimate: several files have the name {', '.join(double)}: rename them, or pass a dict")
    return named


def _load(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise DataError(f"there is no file {path}")
    check_sizes(path, DataError)
    try:
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise DataError(f"{path} has a single array: store {', '.join(ARRAYS)} with np.savez")
        with archive:
            arrays = {name: archive[name] for name in archive.files if name in ARRAYS}
            found = list(archive.files)
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        if isinstance(error, GenmeasuresError):
            raise
        raise DataError(f"{path} cannot be read: {error}") from error
    for name in ARRAYS[::2]:
        if name not in arrays:
            raise DataError(f"{path} has no array {name}{nearest(name, found)}")
    return arrays


__all__ = ["ARRAYS", "read_stored"]
