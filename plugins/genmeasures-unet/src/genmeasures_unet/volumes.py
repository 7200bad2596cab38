"""Volumes with segmentation masks: reading, preparation, and the MNI152 brain template."""

from __future__ import annotations

import importlib
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genmeasures.plugin import DataError, GenmeasuresError, OptionError, check_sizes, nearest

_SUFFIXES = (".nii.gz", ".nii")


@dataclass(frozen=True)
class Case:
    """One examination: an image with 2 or 3 spatial axes, and its segmentation mask, if any."""

    name: str
    image: NDArray[np.float32]
    """(C, ``*S``)"""
    mask: NDArray[np.int64] | None
    """Class labels (``*S``), 0 for background; None for a case without a mask."""


def read_cases(path: str | Path) -> list[Case]:
    """Read the cases of a file or folder.

    The following formats are supported:

    - an ``.npz`` file with an array ``x`` (N, ``*S``) or (N, C, ``*S``), and optionally the masks ``y`` (N, ``*S``),
      the names ``case`` (N,), and ``shape`` (N, axes), the size before zero-padding on both sides, to which the
      volumes are cropped. Without ``y`` and ``shape``, an ``x`` with four axes is read as volumes with one channel;
    - a folder of the Medical Segmentation Decathlon: ``dataset.json`` with a list ``training``;
    - a folder with NIfTI files in ``images``, and masks of the same names in ``labels`` if that folder exists;
    - a NIfTI file, ``.nii`` or ``.nii.gz``: one case without a mask.

    NIfTI images may have a fourth axis, which is the channels. Their axes are flipped and permuted to the closest
    canonical orientation (RAS+).

    Args:
        path: the file or folder.

    Returns:
        The cases, in the order of the file or of the sorted file names.

    Raises:
        DataError: a file is damaged, incomplete or not numeric, or a mask does not fit its image; the message names
            the file and the case.
        GenmeasuresError: nibabel, which NIfTI files need, is not installed.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.savez(f"{folder}/scans.npz", x=np.ones((2, 4, 4)), case=["a", "b"])
        ...     [(case.name, case.image.shape) for case in read_cases(f"{folder}/scans.npz")]
        [('a', (1, 4, 4)), ('b', (1, 4, 4))]
    """
    path = Path(path).expanduser()
    if path.is_dir():
        return [_nifti_case(*files) for files in _listed(path)]
    if not path.is_file():
        raise DataError(f"{path}: there is no such file or folder; set task.volumes to the path of the volumes")
    if path.name.endswith(_SUFFIXES):
        return [_nifti_case(_stem(path), path, None)]
    if path.suffix == ".npz":
        return _npz_cases(path)
    raise DataError(f"{path}: volumes must be an .npz, .nii or .nii.gz file, or a folder")


def standardized(case: Case) -> Case:
    """Standardize the image of a case to mean 0 and standard deviation 1 per channel, over all voxels.

    A constant channel becomes zeros, so that the other channels of the case remain usable.

    Args:
        case: the case; it is not modified.

    Returns:
        The standardized case.

    Example:
        >>> standardized(Case("one", np.array([[[1, 3], [1, 3]]], np.float32), None)).image.tolist()
        [[[-1.0, 1.0], [-1.0, 1.0]]]
    """
    axes = tuple(range(1, case.image.ndim))
    image = case.image.astype(np.float64)
    constant = image.max(axis=axes, keepdims=True) == image.min(axis=axes, keepdims=True)
    image -= image.mean(axis=axes, keepdims=True)
    # The rounded mean of a constant channel would leave tiny values of one sign.
    image = np.where(constant, 0, image / np.where(constant, 1, image.std(axis=axes, keepdims=True)))
    return replace(case, image=image.astype(np.float32))


def reduced(case: Case, factor: int) -> Case:
    """Reduce the resolution of a case by an integer factor.

    Each voxel of the image is the mean of a block of ``factor`` voxels per axis. A voxel of the mask is foreground if
    at least half of its block is, with the most frequent class above 0, the lowest in a tie; so :func:`reduced` and
    :func:`binary` commute. Incomplete blocks at the end are padded with copies of the last voxels.

    Args:
        case: the case; it is not modified.
        factor: number of voxels per block and axis, at least 1.

    Returns:
        The reduced case.

    Raises:
        OptionError: ``factor`` is below 1.

    Example:
        >>> reduced(Case("one", np.arange(16, dtype=np.float32).reshape(1, 4, 4), None), 2).image.tolist()
        [[[2.5, 4.5], [10.5, 12.5]]]
    """
    if factor < 1:
        raise OptionError(f"factor must be 1 or more, got {factor}")
    image = _blocks(case.image, factor, case.image.ndim - 1).mean(axis=-1, dtype=np.float64).astype(np.float32)
    if case.mask is None:
        return replace(case, image=image)
    blocks = _blocks(case.mask, factor, case.mask.ndim)
    foreground = 2 * np.count_nonzero(blocks, axis=-1) >= blocks.shape[-1]
    mask = np.zeros(foreground.shape, np.int64)
    most = np.zeros(foreground.shape, np.int64)
    for label in np.unique(case.mask[case.mask > 0]):
        count = np.count_nonzero(blocks == label, axis=-1)
        mask[count > most] = label
        np.maximum(most, count, out=most)
    return replace(case, image=image, mask=np.where(foreground, mask, 0))


def binary(case: Case) -> Case:
    """Merge all classes above 0 into class 1.

    Args:
        case: the case; it is not modified.

    Returns:
        The case with a binary mask, or ``case`` itself if it has no mask.

    Example:
        >>> binary(Case("one", np.zeros((1, 1, 3), np.float32), np.array([[0, 1, 2]]))).mask.tolist()
        [[0, 1, 1]]
    """
    return case if case.mask is None else replace(case, mask=(case.mask > 0).astype(np.int64))


def mni152(cases: int = 5) -> list[Case]:
    """The MNI152 brain template at 2 mm with gray and white matter, cut into slabs from back to front.

    The image is the T1 template with values from 0 to 1, (1, S0, S1, S2), in RAS+ orientation. The classes are 1 (gray
    matter) and 2 (white matter): the one with the larger probability where that is at least 0.5, gray in a tie. All
    files are part of nilearn; nothing is downloaded.

    Each slab spans both hemispheres, because the template is symmetric: training on the left half would reveal the
    right half. Adjacent slabs are still similar at the cut, and all slabs are an average of 152 brains, so results on
    them say nothing about differences between subjects.

    Args:
        cases: number of slabs, at most the number of slices of the brain.

    Returns:
        One case per slab, ``mni152_0`` at the back.

    Raises:
        OptionError: ``cases`` is out of range.
        GenmeasuresError: nilearn is not installed.

    Example:
        >>> [case.name for case in mni152(2)]
        ['mni152_0', 'mni152_1']
    """
    datasets = _optional("nilearn.datasets")
    image, gray, white = (
        np.asarray(load(resolution=2).dataobj, np.float32)
        for load in (datasets.load_mni152_template, datasets.load_mni152_gm_template, datasets.load_mni152_wm_template)
    )
    mask = np.where(np.maximum(gray, white) < 0.5, 0, np.where(white > gray, 2, 1)).astype(np.int64)
    # Slices behind and in front of the brain would give slabs without foreground.
    slices = np.flatnonzero(mask.any(axis=(0, 2)))
    if not 1 <= cases <= len(slices):
        raise OptionError(f"cases must be from 1 to {len(slices)}, the number of slices of the brain, got {cases}")
    slabs = np.array_split(np.arange(slices[0], slices[-1] + 1), cases)
    return [
        # Copies in C order, which indexing does not preserve.
        Case(f"mni152_{i}", image[np.newaxis, :, slab].copy("C"), mask[:, slab].copy("C"))
        for i, slab in enumerate(slabs)
    ]


def _blocks(array: NDArray[Any], factor: int, dims: int) -> NDArray[Any]:
    """The last ``dims`` axes divided by ``factor``, with the voxels of each block on a new last axis."""
    lead, space = array.shape[: array.ndim - dims], array.shape[array.ndim - dims :]
    filled = np.pad(array, [(0, 0)] * len(lead) + [(0, -n % factor) for n in space], mode="edge")
    split = filled.reshape(*lead, *(n for whole in filled.shape[len(lead) :] for n in (whole // factor, factor)))
    within = range(len(lead) + 1, split.ndim, 2)
    moved = np.moveaxis(split, list(within), list(range(-dims, 0)))
    return moved.reshape(*moved.shape[:-dims], factor**dims)


def _optional(module: str) -> Any:
    """Import a module of the extra ``mri``."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if error.name is None or error.name.partition(".")[0] != package:
            raise
        raise GenmeasuresError(f"volumes of this format need {package}: pip install 'genmeasures-unet[mri]'") from error


def _checked_image(where: str, image: NDArray[Any]) -> NDArray[np.float32]:
    """The image as float32. ``where`` names the file and case in errors."""
    if image.dtype.kind not in "biuf":
        raise DataError(f"{where}: the image must have real numbers, got type {image.dtype}")
    if image.size == 0:
        raise DataError(f"{where}: the image of shape {image.shape} is empty")
    # Flattened in between, because torch may take the stride of a single channel for channels_last.
    values = np.ascontiguousarray(image, np.float32).ravel().reshape(image.shape)
    if not np.isfinite(values).all():
        raise DataError(f"{where}: the image has values that are NaN or infinite")
    return values


def _checked_mask(where: str, mask: NDArray[Any], space: tuple[int, ...]) -> NDArray[np.int64]:
    """The mask as int64, for an image whose spatial axes are ``space``."""
    if mask.dtype.kind not in "biuf":
        raise DataError(f"{where}: the mask must have integers, got type {mask.dtype}")
    if mask.shape != space:
        raise DataError(f"{where}: the mask must have the shape of the image, {space}, got {mask.shape}")
    if not np.isfinite(mask).all() or (mask != np.floor(mask)).any() or mask.min() < 0:
        raise DataError(f"{where}: the mask has values that are not non-negative integers")
    return np.ascontiguousarray(mask, np.int64)


# .npz files


def _npz_cases(path: Path) -> list[Case]:
    arrays = _read_npz(path)
    if "x" not in arrays:
        raise DataError(f"{path} has no array 'x'{nearest('x', arrays)}")
    x, y, shapes = arrays["x"], arrays.get("y"), arrays.get("shape")
    count = len(x) if x.ndim else 0
    for name, array in arrays.items():
        if array.ndim == 0 or len(array) != count or count == 0:
            raise DataError(f"{path}: arrays must have one entry per case, got {name!r} {array.shape} and x {x.shape}")
    names = [str(name) for name in arrays.get("case", np.arange(count))]
    if len(set(names)) != count:
        raise DataError(f"{path}: array 'case' has duplicate names")
    if shapes is not None and (shapes.ndim != 2 or shapes.dtype.kind not in "iu"):
        raise DataError(f"{path}: array 'shape' must be integers (cases, axes), got {shapes.dtype} {shapes.shape}")
    dims = y.ndim - 1 if y is not None else shapes.shape[1] if shapes is not None else 2 if x.ndim == 3 else 3
    if dims not in (2, 3) or x.ndim - dims not in (1, 2) or (shapes is not None and shapes.shape[1] != dims):
        known = ", ".join(f"{name!r} {array.shape}" for name, array in arrays.items())
        raise DataError(f"{path}: volumes must have 2 or 3 spatial axes, the same in all arrays, got {known}")
    cases = []
    for i, name in enumerate(names):
        where = f"{path}: case {name}"
        image = _checked_image(where, x[i] if x.ndim == dims + 2 else x[i][np.newaxis])
        case = Case(name, image, None if y is None else _checked_mask(where, y[i], image.shape[1:]))
        cases.append(case if shapes is None else _unpadded(path, case, shapes[i]))
    return cases


def _read_npz(path: Path) -> dict[str, NDArray[Any]]:
    names = ("x", "y", "case", "shape")
    check_sizes(path, DataError, [f"{name}.npy" for name in names])
    try:
        file = np.load(path, allow_pickle=False)
        if isinstance(file, np.lib.npyio.NpzFile):
            with file:
                return {name: file[name] for name in names if name in file.files}
    except Exception as error:  # NumPy and zipfile raise many types on damaged files
        raise DataError(f"{path} cannot be read as an .npz file: {error}") from error
    raise DataError(f"{path} is a single array: save it under the name x with numpy.savez")


def _unpadded(path: Path, case: Case, shape: NDArray[Any]) -> Case:
    space = case.image.shape[1:]
    if (shape < 1).any() or (shape > space).any():
        raise DataError(f"{path}: case {case.name}: shape must be within {space}, got {tuple(shape.tolist())}")
    starts = [(n - int(k)) // 2 for n, k in zip(space, shape, strict=True)]
    middle = tuple(slice(start, start + int(k)) for start, k in zip(starts, shape, strict=True))
    image = case.image[:, *middle]
    mask = None if case.mask is None else case.mask[middle]
    for whole, part in ((case.image, image), (case.mask, mask)):
        if whole is not None and part is not None and np.count_nonzero(whole) != np.count_nonzero(part):
            raise DataError(
                f"{path}: case {case.name}: there are nonzero values outside the center of shape "
                f"{tuple(shape.tolist())}: pad both sides equally, or remove the array 'shape'"
            )
    return Case(case.name, np.ascontiguousarray(image), None if mask is None else np.ascontiguousarray(mask))


# NIfTI files


def _listed(folder: Path) -> list[tuple[str, Path, Path | None]]:
    """Name, image file and label file of each case in a folder."""
    if (folder / "dataset.json").is_file():
        files = _decathlon(folder)
    elif (folder / "images").is_dir():
        files = _paired(folder)
    else:
        raise DataError(f"{folder} has neither dataset.json nor a folder 'images' with NIfTI files")
    if not files:
        raise DataError(f"{folder} has no cases: no NIfTI file is in its list or in its folder 'images'")
    return files


def _decathlon(folder: Path) -> list[tuple[str, Path, Path | None]]:
    listing = folder / "dataset.json"
    try:
        content = json.loads(listing.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{listing} cannot be read as JSON: {error}") from error
    entries = content.get("training") if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise DataError(f"{listing} must have a list 'training' of images and labels")
    files: list[tuple[str, Path, Path | None]] = []
    for i, entry in enumerate(entries):
        named = [entry.get(key) if isinstance(entry, dict) else None for key in ("image", "label")]
        pair = [_within(folder, value, listing, i) for value in named if isinstance(value, str)]
        if len(pair) != 2 or not all(file.name.endswith(_SUFFIXES) for file in pair):
            raise DataError(f"{listing}: training[{i}] must name an image and a label, .nii or .nii.gz, got {entry!r}")
        image, label = pair
        if image.name.startswith("._"):  # metadata in archives from macOS
            continue
        if any(_stem(image) == name or os.path.realpath(image) == os.path.realpath(other) for name, other, _ in files):
            # It could be in both the training and the test split.
            raise DataError(f"{listing}: training[{i}]: duplicate case {_stem(image)}")
        files.append((_stem(image), image, label))
    return files


def _within(folder: Path, path: str, listing: Path, i: int) -> Path:
    # realpath, because resolve fails on circular links.
    if "\0" in path or not Path(os.path.realpath(folder / path)).is_relative_to(os.path.realpath(folder)):
        raise DataError(f"{listing}: training[{i}]: {path!r} is outside of the folder")
    return folder / path


def _paired(folder: Path) -> list[tuple[str, Path, Path | None]]:
    images, labels = _by_stem(folder / "images"), None
    if (folder / "labels").is_dir():
        labels = _by_stem(folder / "labels")
        for name in images:
            if name not in labels:
                raise DataError(f"{folder / 'labels'}: case {name} has no label; add the file, or remove the image")
    return [(name, image, None if labels is None else labels[name]) for name, image in images.items()]


def _by_stem(folder: Path) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for file in sorted(folder.iterdir()):
        if file.name.endswith(_SUFFIXES) and not file.name.startswith("."):
            if _stem(file) in files:
                raise DataError(f"{file}: duplicate case {_stem(file)}, as .nii and .nii.gz")
            files[_stem(file)] = file
    return files


def _stem(file: Path) -> str:
    return file.name.removesuffix(".gz").removesuffix(".nii")


def _nifti_case(name: str, image_file: Path, label_file: Path | None) -> Case:
    values, affine = _read_nifti(name, image_file)
    channels_first = np.moveaxis(values, -1, 0) if values.ndim == 4 else values[np.newaxis]
    image = _checked_image(f"{image_file}: case {name}", channels_first)
    if label_file is None:
        return Case(name, image, None)
    labels, label_affine = _read_nifti(name, label_file)
    labels = labels[..., 0] if labels.shape[3:] == (1,) else labels
    mask = _checked_mask(f"{label_file}: case {name}", labels, image.shape[1:])
    # Half a voxel, because headers of the same examination are often rounded differently.
    corners = np.array(np.meshgrid(*((0, n - 1) for n in mask.shape), (1,))).reshape(4, -1)
    apart = np.linalg.norm(((label_affine - affine) @ corners)[:3], axis=0).max()
    if not apart <= np.linalg.norm(affine[:3, :3], axis=0).min() / 2:
        raise DataError(
            f"{label_file}: case {name}: the mask is displaced by up to {apart:.3g} mm from its image {image_file}"
        )
    return Case(name, image, mask)


def _read_nifti(name: str, file: Path) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Values with three spatial axes and optionally channels, and the affine to coordinates in mm."""
    nibabel = _optional("nibabel")
    if not file.is_file():
        raise DataError(f"{file}: case {name}: there is no such file")
    try:
        image = nibabel.load(file)
        shape = image.shape
        if len(shape) in (3, 4):
            image = nibabel.as_closest_canonical(image)
            return np.asanyarray(image.dataobj), np.asarray(image.affine, np.float64)
    except Exception as error:  # nibabel, gzip and zlib raise many types on damaged files
        raise DataError(f"{file}: case {name}: cannot be read as NIfTI: {error}") from error
    raise DataError(f"{file}: case {name}: expected three spatial axes and optionally channels, got {shape}")
