"""Volumes with segmentation masks: read from files, prepared, and a brain template that needs no download."""

from __future__ import annotations

import importlib
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genmeasures.errors import DataError, GenmeasuresError, OptionError, nearest
from genmeasures.tasks.archives import check_sizes

_SUFFIXES = (".nii.gz", ".nii")


@dataclass(frozen=True)
class Case:
    """One examination: an image of 2 or 3 spatial axes, and its mask where one is known."""

    name: str
    image: NDArray[np.float32]
    """(C, ``*S``)"""
    mask: NDArray[np.int64] | None
    """Classes (``*S``), 0 for background."""


def read_cases(path: str | Path) -> list[Case]:
    """Read the cases of a file or folder.

    Understood are:

    - an ``.npz`` file with arrays ``x`` (N, ``*S``) or (N, C, ``*S``), and where known ``y`` (N, ``*S``), names
      ``case`` (N,), and ``shape`` (N, axes), the size before zeros were added on both sides, to which the
      volumes are cropped. Without ``y`` and ``shape``, an ``x`` of four axes is taken for volumes of one channel;
    - a folder of the Medical Segmentation Decathlon: ``dataset.json`` with a list ``training``;
    - a folder with NIfTI files in ``images``, and masks of the same names in ``labels`` if that folder exists;
    - a NIfTI file, ``.nii`` or ``.nii.gz``: one case without a mask.

    NIfTI images may have a fourth axis of channels. Their axes are flipped and exchanged so that they point
    to the right, to the front and up as nearly as possible. Needs nibabel for NIfTI files.

    Raises DataError naming the file and case that is damaged, incomplete or not numbers, or whose mask does
    not fit its image, and GenmeasuresError where nibabel is not installed.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        return [_nifti_case(*files) for files in _listed(path)]
    if not path.is_file():
        raise DataError(f"{path}: there is no such file or folder: give the place of the volumes, task.volumes=…")
    if path.name.endswith(_SUFFIXES):
        return [_nifti_case(_stem(path), path, None)]
    if path.suffix == ".npz":
        return _npz_cases(path)
    raise DataError(f"{path} is none of the files that hold volumes: .npz, .nii, .nii.gz")


def standardized(case: Case) -> Case:
    """The case with its image at mean 0 and standard deviation 1 in every channel, over all voxels.

    A constant channel becomes zeros: it tells nothing, but need not cost the other channels their case.
    """
    axes = tuple(range(1, case.image.ndim))
    image = case.image.astype(np.float64)
    constant = image.max(axis=axes, keepdims=True) == image.min(axis=axes, keepdims=True)
    image -= image.mean(axis=axes, keepdims=True)
    # A rounded mean would leave a constant channel at tiny values of one sign.
    image = np.where(constant, 0, image / np.where(constant, 1, image.std(axis=axes, keepdims=True)))
    return replace(case, image=image.astype(np.float32))


def reduced(case: Case, factor: int) -> Case:
    """The case at ``1 / factor`` of its resolution, from blocks of ``factor`` voxels along every axis.

    A voxel of the image becomes the mean of its block. One of the mask is foreground if at least half its block
    is, and then of the most frequent class above 0, the lowest if several are; so reducing and `binary` can be
    exchanged. Blocks at the end that are not full are filled with copies of the last voxels.
    """
    if factor < 1:
        raise OptionError(f"factor must be 1 or more, but is {factor}")
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
    """The case with all classes above 0 merged into class 1; without a mask, the case itself."""
    return case if case.mask is None else replace(case, mask=(case.mask > 0).astype(np.int64))


def mni152(cases: int = 5) -> list[Case]:
    """The MNI152 brain template at 2 mm with gray and white matter, cut into ``cases`` slabs from back to front.

    The image is the T1 template from 0 to 1, (1, S0, S1, S2) with axes to the right, to the front and up; classes
    are 1 (gray matter) and 2 (white matter), the one whose map is larger where it is at least 0.5, gray if both
    are equal. All come with nilearn, and nothing is downloaded.

    Every slab spans both hemispheres, because the template is symmetric: a left half to train on would hold the
    answers for the right half. Slabs that touch are still alike at the cut, and all are one average of 152 brains,
    so results on them say nothing about differences between people.

    Raises OptionError for more slabs than the brain has slices, and GenmeasuresError where nilearn is not installed.
    """
    datasets = _optional("nilearn.datasets")
    image, gray, white = (
        np.asarray(load(resolution=2).dataobj, np.float32)
        for load in (datasets.load_mni152_template, datasets.load_mni152_gm_template, datasets.load_mni152_wm_template)
    )
    mask = np.where(np.maximum(gray, white) < 0.5, 0, np.where(white > gray, 2, 1)).astype(np.int64)
    # Slices behind and before the brain would make slabs without any foreground.
    slices = np.flatnonzero(mask.any(axis=(0, 2)))
    if not 1 <= cases <= len(slices):
        raise OptionError(f"cases must be from 1 to {len(slices)}, the slices of the brain, but is {cases}")
    slabs = np.array_split(np.arange(slices[0], slices[-1] + 1), cases)
    return [
        # Copies in the order of the axes, which indexing does not keep.
        Case(f"mni152_{i}", image[np.newaxis, :, slab].copy("C"), mask[:, slab].copy("C"))
        for i, slab in enumerate(slabs)
    ]


def _blocks(array: NDArray[Any], factor: int, dims: int) -> NDArray[Any]:
    """The last ``dims`` axes divided by ``factor``, the voxels of each block on a new last axis."""
    lead, space = array.shape[: array.ndim - dims], array.shape[array.ndim - dims :]
    filled = np.pad(array, [(0, 0)] * len(lead) + [(0, -n % factor) for n in space], mode="edge")
    split = filled.reshape(*lead, *(n for whole in filled.shape[len(lead) :] for n in (whole // factor, factor)))
    within = range(len(lead) + 1, split.ndim, 2)
    moved = np.moveaxis(split, list(within), list(range(-dims, 0)))
    return moved.reshape(*moved.shape[:-dims], factor**dims)


def _optional(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if error.name is None or error.name.partition(".")[0] != package:
            raise
        raise GenmeasuresError(f"volumes of this kind need {package}: pip install 'genmeasures[mri]'") from error


def _checked_image(where: str, image: NDArray[Any]) -> NDArray[np.float32]:
    """The image as float32; ``where`` names the file and case in errors."""
    if image.dtype.kind not in "biuf":
        raise DataError(f"{where}: the image has type {image.dtype}, not real numbers")
    if image.size == 0:
        raise DataError(f"{where}: the image of shape {image.shape} is empty")
    # Flattened in between, as a single channel can have a stride by which torch takes it to come last.
    made = np.ascontiguousarray(image, np.float32).ravel().reshape(image.shape)
    if not np.isfinite(made).all():
        raise DataError(f"{where}: the image has values that are NaN or infinite")
    return made


def _checked_mask(where: str, mask: NDArray[Any], space: tuple[int, ...]) -> NDArray[np.int64]:
    """The mask as int64, for an image whose spatial axes are ``space``."""
    if mask.dtype.kind not in "biuf":
        raise DataError(f"{where}: the mask has type {mask.dtype}, not integers")
    if mask.shape != space:
        raise DataError(f"{where}: the mask has shape {mask.shape}, but the image {space}")
    if not np.isfinite(mask).all() or (mask != np.floor(mask)).any() or mask.min() < 0:
        raise DataError(f"{where}: the mask has values that are not integers from 0")
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
            raise DataError(f"{path}: arrays must have one entry a case, but {name!r} is {array.shape} and x {x.shape}")
    names = [str(name) for name in arrays.get("case", np.arange(count))]
    if len(set(names)) != count:
        raise DataError(f"{path}: array 'case' must name every case differently")
    if shapes is not None and (shapes.ndim != 2 or shapes.dtype.kind not in "iu"):
        raise DataError(f"{path}: array 'shape' must be integers (cases, axes), but is {shapes.dtype} {shapes.shape}")
    dims = y.ndim - 1 if y is not None else shapes.shape[1] if shapes is not None else 2 if x.ndim == 3 else 3
    if dims not in (2, 3) or x.ndim - dims not in (1, 2) or (shapes is not None and shapes.shape[1] != dims):
        known = ", ".join(f"{name!r} {array.shape}" for name, array in arrays.items())
        raise DataError(f"{path}: volumes need 2 or 3 spatial axes, the same in all arrays; shapes are {known}")
    made = []
    for i, name in enumerate(names):
        where = f"{path}: case {name}"
        image = _checked_image(where, x[i] if x.ndim == dims + 2 else x[i][np.newaxis])
        case = Case(name, image, None if y is None else _checked_mask(where, y[i], image.shape[1:]))
        made.append(case if shapes is None else _unpadded(path, case, shapes[i]))
    return made


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
        raise DataError(f"{path}: case {case.name}: shape {tuple(shape.tolist())} is not within {space}")
    starts = [(n - int(k)) // 2 for n, k in zip(space, shape, strict=True)]
    middle = tuple(slice(start, start + int(k)) for start, k in zip(starts, shape, strict=True))
    image = case.image[:, *middle]
    mask = None if case.mask is None else case.mask[middle]
    for whole, part in ((case.image, image), (case.mask, mask)):
        if whole is not None and part is not None and np.count_nonzero(whole) != np.count_nonzero(part):
            raise DataError(
                f"{path}: case {case.name}: there are values other than 0 outside the middle of shape "
                f"{tuple(shape.tolist())}: pad on both sides alike, or leave the array 'shape' out"
            )
    return Case(case.name, np.ascontiguousarray(image), None if mask is None else np.ascontiguousarray(mask))


# NIfTI files


def _listed(folder: Path) -> list[tuple[str, Path, Path | None]]:
    """Name, image and label of every case in a folder."""
    if (folder / "dataset.json").is_file():
        files = _decathlon(folder)
    elif (folder / "images").is_dir():
        files = _paired(folder)
    else:
        raise DataError(f"{folder} has neither dataset.json nor a folder images with NIfTI files")
    if not files:
        raise DataError(f"{folder} has no cases: there are no NIfTI files that are listed or in images")
    return files


def _decathlon(folder: Path) -> list[tuple[str, Path, Path | None]]:
    listing = folder / "dataset.json"
    try:
        content = json.loads(listing.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{listing} cannot be read as JSON: {error}") from error
    entries = content.get("training") if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise DataError(f"{listing}: must have a list 'training' of images and labels")
    files: list[tuple[str, Path, Path | None]] = []
    for i, entry in enumerate(entries):
        named = [entry.get(key) if isinstance(entry, dict) else None for key in ("image", "label")]
        pair = [_within(folder, value, listing, i) for value in named if isinstance(value, str)]
        if len(pair) != 2 or not all(file.name.endswith(_SUFFIXES) for file in pair):
            raise DataError(f"{listing}: training[{i}] must name an image and a label, .nii or .nii.gz: {entry!r}")
        image, label = pair
        if image.name.startswith("._"):  # left by archives from macOS beside the true files
            continue
        if any(_stem(image) == name or os.path.realpath(image) == os.path.realpath(other) for name, other, _ in files):
            # It could be trained on and tested with.
            raise DataError(f"{listing}: training[{i}]: duplicate case {_stem(image)}")
        files.append((_stem(image), image, label))
    return files


def _within(folder: Path, path: str, listing: Path, i: int) -> Path:
    # realpath, as resolve fails on links that lead in a circle.
    if "\0" in path or not Path(os.path.realpath(folder / path)).is_relative_to(os.path.realpath(folder)):
        raise DataError(f"{listing}: training[{i}]: {path!r} leads out of the folder")
    return folder / path


def _paired(folder: Path) -> list[tuple[str, Path, Path | None]]:
    images, labels = _by_stem(folder / "images"), None
    if (folder / "labels").is_dir():
        labels = _by_stem(folder / "labels")
        for name in images:
            if name not in labels:
                raise DataError(f"{folder / 'labels'}: case {name} has no label; remove its image or add the file")
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
    # Half a voxel, since headers of the same examination are often rounded differently.
    corners = np.array(np.meshgrid(*((0, n - 1) for n in mask.shape), (1,))).reshape(4, -1)
    apart = np.linalg.norm(((label_affine - affine) @ corners)[:3], axis=0).max()
    if not apart <= np.linalg.norm(affine[:3, :3], axis=0).min() / 2:
        raise DataError(f"{label_file}: case {name}: the mask lies up to {apart:.3g} mm off its image {image_file}")
    return Case(name, image, mask)


def _read_nifti(name: str, file: Path) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """The values, three axes of space and maybe one of channels, and the affine to places in mm."""
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
    raise DataError(f"{file}: case {name}: must have three axes of space and maybe one of channels, not {shape}")
