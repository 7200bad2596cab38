"""Volumes: supported and damaged files, preprocessing, and the brain template."""

from __future__ import annotations

import json
import socket
import sys
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from genmeasures_unet.volumes import Case, binary, mni152, read_cases, reduced, standardized
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from skimage.measure import block_reduce

from genmeasures.plugin import DataError, GenmeasuresError, OptionError

HIPPOCAMPUS = Path(__file__).resolve().parents[4] / "shared" / "data" / "msd_hippocampus" / "msd_hippocampus_160.npz"

IMAGE = np.arange(1, 25, dtype=np.float32).reshape(2, 3, 4)
MASK = (IMAGE > 20).astype(np.uint8)


def centered(case: Case, size: tuple[int, ...]) -> Case:
    """The case with zeros on both sides, an odd one after it."""
    assert case.mask is not None
    more = [wide - side for wide, side in zip(size, case.mask.shape, strict=True)]
    widths = [(number // 2, number - number // 2) for number in more]
    return Case(case.name, np.pad(case.image, [(0, 0), *widths]), np.pad(case.mask, widths))


def save_npz(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


def save_nifti(path: Path, array: NDArray[Any], affine: NDArray[Any] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4) if affine is None else affine), path)
    return path


def save_decathlon(folder: Path, training: object) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "dataset.json").write_text(json.dumps({"name": "Toy", "training": training}))
    return folder


# .npz files


def test_npz_with_names_and_sizes_undoes_the_padding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    cases = [
        Case(name, rng.integers(1, 256, (1, *shape)).astype(np.float32), rng.integers(0, 3, shape))
        for name, shape in (("p", (3, 4, 5)), ("q", (6, 3, 2)), ("r", (6, 7, 5)))
    ]
    full = [centered(case, (6, 7, 5)) for case in cases]
    save_npz(
        tmp_path / "a.npz",
        x=np.stack([case.image[0] for case in full]).astype(np.uint8),
        y=np.stack([case.mask for case in full if case.mask is not None]).astype(np.uint8),
        case=np.array([case.name for case in cases]),
        shape=np.array([case.image.shape[1:] for case in cases]),
    )
    monkeypatch.setenv("HOME", str(tmp_path))
    read = read_cases("~/a.npz")
    assert [case.name for case in read] == ["p", "q", "r"]
    for one, truth in zip(read, cases, strict=True):
        assert one.mask is not None
        assert (one.image.dtype, one.mask.dtype) == (np.float32, np.int64)
        np.testing.assert_array_equal(one.image, truth.image)
        np.testing.assert_array_equal(one.mask, truth.mask)


@pytest.mark.parametrize(
    ("x", "y", "image"),
    [
        ((3, 8, 9), None, (1, 8, 9)),
        ((3, 7, 8, 9), None, (1, 7, 8, 9)),
        ((3, 2, 7, 8, 9), None, (2, 7, 8, 9)),
        ((3, 8, 9), (3, 8, 9), (1, 8, 9)),
        ((3, 2, 8, 9), (3, 8, 9), (2, 8, 9)),
        ((3, 7, 8, 9), (3, 7, 8, 9), (1, 7, 8, 9)),
        ((3, 2, 7, 8, 9), (3, 7, 8, 9), (2, 7, 8, 9)),
    ],
)
def test_npz_axes(tmp_path: Path, x: tuple[int, ...], y: tuple[int, ...] | None, image: tuple[int, ...]) -> None:
    values = np.random.default_rng(0).random(x)
    path = save_npz(tmp_path / "a.npz", x=values, **({} if y is None else {"y": np.ones(y, bool)}))
    cases = read_cases(path)
    assert [case.name for case in cases] == ["0", "1", "2"]
    for case, value in zip(cases, values, strict=True):
        assert case.image.shape == image
        np.testing.assert_array_equal(case.image.ravel(), value.astype(np.float32).ravel())
        assert (case.mask is None) if y is None else (case.mask is not None and case.mask.shape == image[1:])


NAN = np.full((1, 2, 2), np.nan)
ONES = np.ones((2, 4, 4))


@pytest.mark.parametrize(
    ("arrays", "fault"),
    [
        ({"images": ONES}, "has no array 'x'"),
        ({"x": np.float64(1)}, "one entry per case"),
        ({"x": ONES[:0]}, "one entry per case"),
        ({"x": ONES, "y": ONES[:1]}, "one entry per case"),
        ({"x": ONES, "case": np.array(["a"])}, "one entry per case"),
        ({"x": ONES, "case": np.array(["a", "a"])}, "array 'case' has duplicate names"),
        ({"x": ONES[0]}, "2 or 3 spatial axes"),
        ({"x": ONES, "y": ONES[..., None]}, "2 or 3 spatial axes"),
        ({"x": ONES, "shape": np.array([[4, 4, 4]] * 2)}, "2 or 3 spatial axes"),
        ({"x": ONES, "shape": np.array([4, 4])}, "array 'shape' must be integers"),
        ({"x": ONES, "shape": ONES[:, 0]}, "array 'shape' must be integers"),
        ({"x": ONES, "shape": np.array([[4, 4], [5, 4]])}, r"case 1: shape must be within \(4, 4\), got \(5, 4\)"),
        ({"x": ONES, "shape": np.array([[4, 4], [4, 0]])}, r"case 1: shape must be within \(4, 4\), got \(4, 0\)"),
        ({"x": ONES, "shape": np.array([[4, 4], [2, 4]])}, "case 1: there are nonzero values outside"),
        ({"x": 0 * ONES, "y": ONES, "shape": np.array([[4, 4], [2, 4]])}, "case 1: there are nonzero values"),
        ({"x": NAN, "case": np.array(["z9"])}, "case z9: .* NaN"),
        ({"x": np.full((1, 2, 2), np.inf)}, "case 0: .* infinite"),
        ({"x": np.array([[["a"]]])}, "case 0: the image must have real numbers"),
        ({"x": np.ones((1, 2, 2), complex)}, "case 0: the image must have real numbers, got type complex"),
        ({"x": np.ones((1, 0, 2))}, "case 0: .* empty"),
        ({"x": ONES, "y": ONES / 2}, "case 0: the mask has values that are not non-negative integers"),
        ({"x": ONES, "y": -ONES}, "case 0: the mask has values that are not non-negative integers"),
        ({"x": ONES[:1, :2, :2], "y": NAN}, "case 0: the mask has values that are not non-negative integers"),
        ({"x": ONES, "y": ONES.astype(str)}, "case 0: the mask must have integers, got type"),
        ({"x": ONES, "y": ONES[:, 1:]}, r"case 0: the mask must have the shape of the image, \(4, 4\), got \(3, 4\)"),
        ({"x": np.array([{}], object)}, "cannot be read"),
    ],
)
def test_faults_of_npz_files_are_named(tmp_path: Path, arrays: dict[str, Any], fault: str) -> None:
    path = save_npz(tmp_path / "bad.npz", **arrays)
    with pytest.raises(DataError, match=rf"bad\.npz.*{fault}"):
        read_cases(path)


def test_padding_at_the_end_is_noticed(tmp_path: Path) -> None:
    x = np.zeros((1, 6, 6), np.uint8)
    x[0, :4, :4] = 1
    with pytest.raises(DataError, match="outside the center"):
        read_cases(save_npz(tmp_path / "a.npz", x=x, shape=np.array([[4, 4]])))


def test_missing_or_damaged_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        read_cases(tmp_path / "absent.npz")
    with pytest.raises(DataError, match=r"volumes must be an \.npz"):
        read_cases(Path(__file__))
    whole = save_npz(tmp_path / "a.npz", x=ONES).read_bytes()
    (tmp_path / "a.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"a\.npz cannot be read"):
        read_cases(tmp_path / "a.npz")
    with (tmp_path / "b.npz").open("wb") as file:
        np.save(file, ONES)
    with pytest.raises(DataError, match=r"b\.npz is a single array"):
        read_cases(tmp_path / "b.npz")


# NIfTI files


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_nifti_file_is_one_case_without_mask(tmp_path: Path, suffix: str) -> None:
    (case,) = read_cases(save_nifti(tmp_path / f"knee.1{suffix}", IMAGE))
    assert (case.name, case.mask) == ("knee.1", None)
    np.testing.assert_array_equal(case.image, IMAGE[np.newaxis])


def test_axes_are_brought_to_canonical_order(tmp_path: Path) -> None:
    # Stored axes run down, to the left and to the front: as scanners may store sagittal slices.
    stored = IMAGE[::-1, :, ::-1].transpose(2, 0, 1)
    affine = np.array([[0, -2, 0, 2], [0, 0, 3, 0], [-4, 0, 0, 12], [0, 0, 0, 1.0]])
    # What the header says of it: voxel (i, j, k) of IMAGE lies at (2i, 3j, 4k).
    for i, j, k in ((0, 0, 0), (1, 2, 3), (1, 0, 2)):
        at = (3 - k, 1 - i, j)
        assert stored[at] == IMAGE[i, j, k]
        assert (affine @ [*at, 1]).tolist() == [2 * i, 3 * j, 4 * k, 1]
    save_nifti(tmp_path / "images" / "a.nii", stored, affine)
    save_nifti(tmp_path / "labels" / "a.nii.gz", MASK, np.diag([2.0, 3, 4, 1]))
    (case,) = read_cases(tmp_path)
    np.testing.assert_array_equal(case.image[0], IMAGE)
    assert case.mask is not None
    np.testing.assert_array_equal(case.mask, MASK)


def test_a_fourth_axis_is_channels(tmp_path: Path) -> None:
    image = np.random.default_rng(0).random((3, 4, 5, 2)).astype(np.float32)
    (case,) = read_cases(save_nifti(tmp_path / "a.nii", image, np.diag([-1.0, 1, 1, 1])))
    np.testing.assert_array_equal(case.image, image[::-1].transpose(3, 0, 1, 2))


def test_the_decathlon_layout(tmp_path: Path) -> None:
    training = []
    for name, value in (("toy_7", 7), ("toy_2", 2), ("._toy_7", 0), ("toy_5", 5)):
        training.append({"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"})
        for part, array in (("images", np.full((2, 3, 4, 2), value, np.int16)), ("labels", MASK)):
            path = tmp_path / f"{part}Tr" / f"{name}.nii.gz"
            if name.startswith("._"):
                path.write_bytes(b"Mac OS X")
            else:
                save_nifti(path, array)
    cases = read_cases(save_decathlon(tmp_path, training))
    assert [case.name for case in cases] == ["toy_7", "toy_2", "toy_5"]
    for case, value in zip(cases, (7, 2, 5), strict=True):
        assert case.image.shape == (2, 2, 3, 4)
        assert (case.image == value).all()
        assert case.mask is not None
        np.testing.assert_array_equal(case.mask, MASK)
    for again in (training[0], {"image": "./imagesTr/../imagesTr/toy_7.nii.gz", "label": "labelsTr/toy_7.nii.gz"}):
        with pytest.raises(DataError, match=r"training\[\d+\]: duplicate case toy_7"):
            read_cases(save_decathlon(tmp_path, [*training, again]))
    save_decathlon(tmp_path, training)
    (tmp_path / "imagesTr" / "toy_5.nii.gz").unlink()
    with pytest.raises(DataError, match=r"toy_5\.nii\.gz: case toy_5: there is no such file"):
        read_cases(tmp_path)


@pytest.mark.parametrize("place", ["../a.nii", "imagesTr/../../a.nii", "{outside}/a.nii", "link/a.nii", "a\0.nii"])
@pytest.mark.parametrize("key", ["image", "label"])
def test_a_listing_cannot_lead_out_of_its_folder(tmp_path: Path, place: str, key: str) -> None:
    save_nifti(tmp_path / "a.nii", MASK)
    folder = tmp_path / "task"
    save_nifti(folder / "in.nii", MASK)
    (folder / "link").symlink_to(tmp_path)
    entry = {"image": "in.nii", "label": "in.nii", key: place.format(outside=tmp_path)}
    with pytest.raises(DataError, match=r"dataset\.json: training\[0\]: .* is outside of the folder"):
        read_cases(save_decathlon(folder, [entry]))
    assert read_cases(save_decathlon(folder, [{**entry, key: "in.nii"}]))[0].name == "in"


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("{", "cannot be read as JSON"),
        ("[" * 100_000, "cannot be read as JSON"),
        ("[]", "must have a list 'training'"),
        ('{"training": 3}', "must have a list 'training'"),
        ('{"training": ["a.nii"]}', r"training\[0\] must name an image and a label"),
        ('{"training": [{"image": "a.nii"}]}', r"training\[0\] must name an image and a label"),
        ('{"training": [{"image": "a.nii", "label": 3}]}', r"training\[0\] must name an image and a label"),
        ('{"training": [{"image": "a.nii", "label": "a.png"}]}', r"training\[0\] must name an image and a label"),
        ('{"training": []}', "has no cases"),
    ],
)
def test_faults_of_a_listing_are_named(tmp_path: Path, text: str, fault: str) -> None:
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(DataError, match=fault):
        read_cases(tmp_path)


def test_folders_of_images_and_labels(tmp_path: Path) -> None:
    for name in ("b.nii", "a.nii.gz"):
        save_nifti(tmp_path / "images" / name, IMAGE)
    for hidden in ("._a.nii.gz", ".DS_Store", "notes.txt"):
        (tmp_path / "images" / hidden).write_text("no image")
    cases = read_cases(tmp_path)
    assert [(case.name, case.mask) for case in cases] == [("a", None), ("b", None)]
    # Integers are labels whatever type they are stored in.
    save_nifti(tmp_path / "labels" / "a.nii.gz", MASK.astype(np.float32))
    with pytest.raises(DataError, match="labels: case b has no label"):
        read_cases(tmp_path)
    save_nifti(tmp_path / "labels" / "b.nii.gz", MASK[..., np.newaxis])
    for case in read_cases(tmp_path):
        assert case.mask is not None
        assert case.mask.dtype == np.int64
        np.testing.assert_array_equal(case.mask, MASK)
    save_nifti(tmp_path / "images" / "b.nii.gz", IMAGE)
    with pytest.raises(DataError, match="duplicate case b"):
        read_cases(tmp_path)


def test_folders_without_volumes(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"neither dataset\.json nor a folder 'images'"):
        read_cases(tmp_path)
    (tmp_path / "images").mkdir()
    with pytest.raises(DataError, match="has no cases"):
        read_cases(tmp_path)


@pytest.mark.parametrize(
    ("label", "affine", "fault"),
    [
        (MASK[:, :2], np.eye(4), r"the mask must have the shape of the image, \(2, 3, 4\), got \(2, 2, 4\)"),
        (np.stack([MASK, MASK], -1), np.eye(4), r"the mask must have the shape of the image, .* got \(2, 3, 4, 2\)"),
        (MASK + np.float32(0.5), np.eye(4), "the mask has values that are not non-negative integers"),
        (MASK.astype(np.int16) - 1, np.eye(4), "the mask has values that are not non-negative integers"),
        (np.full(MASK.shape, np.nan, np.float32), np.eye(4), "the mask has values that are not non-negative integers"),
        (MASK, np.diag([-1.0, 1, 1, 1]), "the mask is displaced by up to 1 mm from its image"),
        (MASK, np.diag([1, 1, 1.3, 1]), "the mask is displaced by up to 0.9 mm from its image"),
    ],
)
def test_mismatched_labels_are_named(tmp_path: Path, label: NDArray[Any], affine: NDArray[Any], fault: str) -> None:
    save_nifti(tmp_path / "images" / "a.nii.gz", IMAGE)
    save_nifti(tmp_path / "labels" / "a.nii.gz", label, affine)
    with pytest.raises(DataError, match=rf"labels/a\.nii\.gz: case a: {fault}"):
        read_cases(tmp_path)


def test_headers_may_be_rounded_differently(tmp_path: Path) -> None:
    save_nifti(tmp_path / "images" / "a.nii.gz", IMAGE)
    save_nifti(tmp_path / "labels" / "a.nii.gz", MASK, np.diag([1, 1, 1.1, 1]))
    assert len(read_cases(tmp_path)) == 1


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_damaged_nifti_files_are_named(tmp_path: Path, suffix: str) -> None:
    path = save_nifti(tmp_path / f"a{suffix}", np.random.default_rng(0).random((9, 9, 9)))
    whole = path.read_bytes()
    for damaged in (whole[:-200], whole[:100], b"", b"not a volume" * 50):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"case a: cannot be read as NIfTI"):
            read_cases(path)


@pytest.mark.parametrize("shape", [(4, 5), (2, 3, 4, 5, 2)])
def test_nifti_files_of_other_axes_are_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match="expected three spatial axes"):
        read_cases(save_nifti(tmp_path / "a.nii", np.ones(shape, np.float32)))


def test_a_fault_of_the_image_is_not_blamed_on_its_label(tmp_path: Path) -> None:
    save_nifti(tmp_path / "images" / "a.nii", IMAGE * np.float32("nan"))
    save_nifti(tmp_path / "labels" / "a.nii", MASK)
    with pytest.raises(DataError, match=r"images/a\.nii: case a: the image has values that are NaN"):
        read_cases(tmp_path)


def test_values_of_nifti_files_are_checked(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.nii: case a: the image has values that are NaN"):
        read_cases(save_nifti(tmp_path / "a.nii", IMAGE * np.float32("nan")))
    colors = np.zeros((2, 2, 2), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    with pytest.raises(DataError, match="must have real numbers"):
        read_cases(save_nifti(tmp_path / "a.nii", colors))


def test_the_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_nifti(tmp_path / "a.nii", IMAGE)
    monkeypatch.setitem(sys.modules, "nibabel", None)
    monkeypatch.setitem(sys.modules, "nilearn", None)
    monkeypatch.delitem(sys.modules, "nilearn.datasets", raising=False)
    with pytest.raises(GenmeasuresError, match=r"need nibabel: pip install 'genmeasures-unet\[mri\]'"):
        read_cases(path)
    with pytest.raises(GenmeasuresError, match=r"need nilearn: pip install 'genmeasures-unet\[mri\]'"):
        mni152()


# Preparation


def test_standardized_by_channel() -> None:
    rng = np.random.default_rng(0)
    image = np.stack([rng.normal(1e4, 3, (20, 20, 20)), rng.random((20, 20, 20))]).astype(np.float32)
    made = standardized(Case("a", image, None))
    assert made.image.dtype == np.float32
    for before, after in zip(image.astype(np.float64), made.image, strict=True):
        np.testing.assert_allclose(after, (before - before.mean()) / before.std(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("value", [0, 0.1, 1e30, -7])
def test_a_constant_channel_becomes_zero(value: float) -> None:
    image = np.stack([np.full((3, 7), value), np.arange(21.0).reshape(3, 7)]).astype(np.float32)
    made = standardized(Case("a", image, None)).image
    assert not made[0].any()
    assert made[1].std() == pytest.approx(1)


@st.composite
def cases_and_factors(draw: st.DrawFn) -> tuple[Case, int]:
    shape = tuple(draw(st.lists(st.integers(1, 7), min_size=2, max_size=3)))
    image = draw(hnp.arrays(np.float32, (draw(st.integers(1, 2)), *shape), elements=st.integers(-99, 99)))
    return Case("a", image, draw(hnp.arrays(np.int64, shape, elements=st.integers(0, 3)))), draw(st.integers(1, 4))


def slow_majority(block: NDArray[np.int64]) -> int:
    counts = np.bincount(block.ravel(), minlength=4)
    return int(counts[1:].argmax()) + 1 if 2 * counts[1:].sum() >= block.size else 0


@given(cases_and_factors())
@settings(deadline=None)
def test_reduced_is_the_mean_and_majority_of_blocks(made: tuple[Case, int]) -> None:
    case, factor = made
    assert case.mask is not None
    small = reduced(case, factor)
    assert small.mask is not None
    rest = [(0, -n % factor) for n in case.mask.shape]
    image = np.pad(case.image.astype(np.float64), [(0, 0), *rest], mode="edge")
    truth = block_reduce(image, (1, *[factor] * case.mask.ndim), np.mean)
    np.testing.assert_allclose(small.image, truth, rtol=1e-6, atol=1e-6)
    mask = np.pad(case.mask, rest, mode="edge")
    for at in np.ndindex(small.mask.shape):
        block = mask[tuple(slice(i * factor, (i + 1) * factor) for i in at)]
        assert small.mask[at] == slow_majority(block)
    assert (small.image.dtype, small.mask.dtype, small.mask.shape) == (np.float32, np.int64, small.image.shape[1:])
    np.testing.assert_array_equal(binary(small).mask, reduced(binary(case), factor).mask)  # type: ignore[arg-type]


def test_reduced_by_hand() -> None:
    image = np.array([[[1, 3, 5], [5, 7, 9]]], np.float32)
    mask = np.array([[0, 2, 0], [0, 1, 3]])
    made = reduced(Case("a", image, mask), 2)
    assert made.mask is not None
    # Classes 1 and 2 have a quarter each, and the last column counts twice.
    assert made.image.tolist() == [[[4, 7]]]
    assert made.mask.tolist() == [[1, 3]]
    assert reduced(Case("a", image, None), 2).mask is None
    with pytest.raises(OptionError, match="factor must be 1 or more"):
        reduced(made, 0)


def test_binary_merges_the_classes() -> None:
    made = binary(Case("a", np.zeros((1, 2, 2), np.float32), np.array([[0, 1], [2, 7]])))
    assert made.mask is not None
    assert made.mask.tolist() == [[0, 1], [1, 1]]
    assert made.mask.dtype == np.int64
    assert binary(Case("a", made.image, None)).mask is None


# Data that come with nilearn, and real ones


def test_the_brain_template_comes_without_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("asks for the network")

    monkeypatch.setattr(socket, "socket", refuse)
    slabs = mni152()
    assert [case.name for case in slabs] == [f"mni152_{i}" for i in range(5)]
    for case in slabs:
        assert case.mask is not None
        assert case.image.shape == (1, 99, 18, 95)
        assert (case.mask.shape, case.mask.dtype, case.image.dtype) == ((99, 18, 95), np.int64, np.float32)
        shares = np.bincount(case.mask.ravel(), minlength=3) / case.mask.size
        # Gray matter, white matter and a rest around them in every slab.
        assert len(shares) == 3
        assert (shares > [0.5, 0.05, 0.03]).all()
        # The reason not to cut between the hemispheres.
        np.testing.assert_array_equal(case.mask, case.mask[::-1])
        # White matter is brighter in T1-weighted images.
        assert case.image[0][case.mask == 2].mean() > 1.1 * case.image[0][case.mask == 1].mean()
    # In liters; an adult brain has about 0.6 to 1.1 of gray, 0.4 to 0.7 of white matter.
    gray, white = sum(np.bincount(case.mask.ravel()) for case in slabs if case.mask is not None)[1:] * 8e-6
    assert 0.6 < gray < 1.1
    assert 0.4 < white < 0.7


def test_slabs_of_the_template_put_together_are_the_same_for_any_number() -> None:
    one, four = mni152(1), mni152(4)
    np.testing.assert_array_equal(np.concatenate([case.image for case in four], 2), one[0].image)
    np.testing.assert_array_equal(
        np.concatenate([case.mask for case in four if case.mask is not None], 1),
        one[0].mask,  # type: ignore[arg-type]
    )
    for wrong in (0, 1000):
        with pytest.raises(OptionError, match="cases must be from 1 to"):
            mni152(wrong)


@pytest.mark.skipif(not HIPPOCAMPUS.is_file(), reason="../shared/data/msd_hippocampus is absent")
def test_real_hippocampi() -> None:
    with np.load(HIPPOCAMPUS, allow_pickle=False) as file:
        shapes, foreground = file["shape"], (file["y"] > 0).sum(axis=(1, 2, 3))
    cases = read_cases(HIPPOCAMPUS)
    assert len(cases) == 160
    assert [case.image.shape[1:] for case in cases] == [tuple(shape) for shape in shapes.tolist()]
    for case, voxels in zip(cases, foreground, strict=True):
        assert case.mask is not None
        assert np.count_nonzero(case.mask) == voxels
        assert np.unique(case.mask).tolist() == [0, 1, 2]
    # Halving keeps about as much of the hippocampus.
    share = np.mean([binary(case).mask for case in cases[:1]])  # type: ignore[arg-type]
    assert np.mean(reduced(binary(cases[0]), 2).mask) == pytest.approx(share, rel=0.1)  # type: ignore[arg-type]
