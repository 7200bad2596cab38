"""One view of arrays, data sets and loaders: what is read, in which order, and what is refused by name."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from genmeasures.data import DataSource, TargetInfo
from genmeasures.data.keys import content_keys
from genmeasures.errors import DataError
from genmeasures.interfaces import TargetLabeler

N = 23
INPUTS = torch.randn(N, 2, 4, 5, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(N) % 5


class Pairs(Dataset[Any]):
    """A data set of one's own: of inputs, or of pairs."""

    def __init__(self, *parts: Any) -> None:
        self.parts = parts

    def __len__(self) -> int:
        return len(self.parts[0])

    def __getitem__(self, index: int) -> Any:
        item = tuple(part[index] for part in self.parts)
        return item if len(item) > 1 else item[0]


class Stream(IterableDataset[Any]):
    def __init__(self, count: int = N) -> None:
        self.count = count

    def __iter__(self) -> Iterator[Any]:
        return iter(list(zip(INPUTS, LABELS, strict=True))[: self.count])


def source(data: Any, batch_size: int = 10) -> DataSource:
    return DataSource(data, "train", batch_size)


def read(data: Any, batch_size: int = 10) -> tuple[Tensor, Tensor | None, list[int]]:
    """All inputs, all targets, and the sizes of the batches; read twice, and alike."""
    one = source(data, batch_size)
    first, second = list(one), list(one)
    for left, right in zip(first, second, strict=True):
        assert torch.equal(left[0], right[0])
        assert (left[1] is None) == (right[1] is None)
        assert left[1] is None or torch.equal(left[1], right[1])
    scan = one.scan()
    inputs = torch.cat([inputs for inputs, _ in first])
    assert len(scan) == len(inputs)
    assert scan.input_shape == inputs.shape[1:]
    targets = None if first[0][1] is None else torch.cat([target for _, target in first if target is not None])
    checked = [(start, len(inputs)) for start, inputs, _ in one.checked()]
    sizes = [len(inputs) for inputs, _ in first]
    assert checked == list(zip(np.cumsum([0, *sizes[:-1]]).tolist(), sizes, strict=True))
    return inputs, targets, sizes


KINDS: list[tuple[str, Callable[[], Any]]] = [
    ("tensors", lambda: (INPUTS, LABELS)),
    ("arrays", lambda: (INPUTS.numpy(), LABELS.numpy())),
    ("list", lambda: [INPUTS, LABELS]),
    ("nested lists", lambda: (INPUTS.tolist(), LABELS.tolist())),
    ("float64", lambda: (INPUTS.double(), LABELS.int())),
    ("small types", lambda: (INPUTS.numpy(), LABELS.numpy().astype(np.uint8))),
    ("read-only", lambda: (read_only(INPUTS.numpy()), read_only(LABELS.numpy()))),
    ("big-endian", lambda: (INPUTS.numpy().astype(">f4"), LABELS.numpy().astype(">i2"))),
    ("backwards", lambda: (INPUTS.numpy()[::-1].copy()[::-1], LABELS.numpy()[::-1].copy()[::-1])),
    (
        "channels last",
        lambda: (np.ascontiguousarray(INPUTS.numpy().transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2), LABELS),
    ),
    ("gradients", lambda: (INPUTS.clone().requires_grad_(), LABELS)),
    ("data set", lambda: TensorDataset(INPUTS, LABELS)),
    ("own data set", lambda: Pairs(INPUTS, LABELS)),
    ("of arrays", lambda: Pairs(INPUTS.numpy(), LABELS.tolist())),
    ("subset", lambda: Subset(TensorDataset(INPUTS, LABELS), range(N))),
    ("loader", lambda: DataLoader(TensorDataset(INPUTS, LABELS), batch_size=10)),
    ("stream", lambda: Stream()),
    ("stream in a loader", lambda: DataLoader(Stream(), batch_size=10)),
]


def read_only(array: NDArray[Any]) -> NDArray[Any]:
    made = array.copy()
    made.flags.writeable = False
    return made


@pytest.mark.parametrize("make", [make for _, make in KINDS], ids=[name for name, _ in KINDS])
def test_every_kind_of_data_is_read_alike(make: Callable[[], Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        inputs, targets, sizes = read(make())
    assert inputs.dtype == torch.float32
    assert not inputs.requires_grad
    assert torch.equal(inputs, INPUTS)
    assert targets is not None
    assert targets.dtype == torch.int64
    assert torch.equal(targets, LABELS[:, None])
    assert sizes == [10, 10, 3]


class Tagged(torch.Tensor):
    """Carries something with it, and its own ``new_empty`` takes one size."""

    def new_empty(self, size: Any, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Any:
        plain = self.as_subclass(Tensor)
        return plain.new_empty(size=size, dtype=dtype, device=device, requires_grad=requires_grad).as_subclass(Tagged)


class Jealous(torch.Tensor):
    """Whatever is done with it gives its class again, as its own functions do."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = super().__torch_function__(func, types, args, kwargs or {})
        return made.as_subclass(cls) if type(made) is Tensor else made


class Unit(np.ndarray[Any, Any]):
    """A NumPy array of another class."""


class Foreign:
    """An array of another library, by one of the two protocols."""

    def __init__(self, array: Any) -> None:
        self._array = array

    def __len__(self) -> int:
        return len(self._array)


class ByArray(Foreign):
    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return np.asarray(self._array, dtype)


class ByDlpack(Foreign):
    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        raise TypeError("not on this device")

    def __dlpack__(self, **options: Any) -> Any:
        return self._array.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self._array.__dlpack_device__()


FOREIGN: list[tuple[str, Callable[[], Any]]] = [
    ("a subclass", lambda: (INPUTS.as_subclass(Tagged), LABELS.as_subclass(Tagged))),
    ("a jealous subclass", lambda: (INPUTS.as_subclass(Jealous), LABELS.as_subclass(Jealous))),
    ("a parameter", lambda: (torch.nn.Parameter(INPUTS), LABELS)),
    ("sparse", lambda: (INPUTS.to_sparse(), LABELS)),
    ("conjugated", lambda: (torch.complex(INPUTS, -INPUTS).conj().imag, LABELS)),
    ("a NumPy subclass", lambda: (INPUTS.numpy().view(Unit), LABELS.numpy().view(Unit))),
    ("masked nowhere", lambda: (np.ma.array(INPUTS.numpy()), np.ma.array(LABELS.numpy(), mask=False))),
    ("pandas column", lambda: (INPUTS, pd.Series(LABELS.numpy(), index=np.arange(N)[::-1] + 5))),
    ("pandas column of a table", lambda: (INPUTS, pd.DataFrame({"label": LABELS.numpy()}))),
    (
        "pandas integers with missing values, of which there are none",
        lambda: (INPUTS, pd.Series(LABELS, dtype="Int64")),
    ),
    ("pandas categories", lambda: (INPUTS, pd.Series(LABELS.numpy()).astype("category"))),
    ("objects that are numbers", lambda: (INPUTS, np.array(LABELS.tolist(), dtype=object))),
    ("lists of tensors", lambda: (list(INPUTS), list(LABELS))),
    ("lists of arrays and numbers", lambda: ([x.numpy() for x in INPUTS], LABELS.tolist())),
    ("by __array__", lambda: (ByArray(INPUTS.numpy()), ByArray(LABELS.numpy()))),
    ("by __dlpack__", lambda: (ByDlpack(INPUTS), ByDlpack(LABELS))),
    ("data set of a subclass", lambda: Pairs(INPUTS.as_subclass(Tagged), LABELS.as_subclass(Jealous))),
    ("data set of foreign arrays", lambda: Pairs([ByArray(x) for x in INPUTS.numpy()], LABELS.numpy())),
    ("data set with lists as targets", lambda: Pairs(INPUTS, [[label] for label in LABELS.tolist()])),
    (
        "loader of a subclass with a worker",
        lambda: DataLoader(Pairs(INPUTS.as_subclass(Tagged), LABELS), 10, True, num_workers=1),
    ),
    ("loader that makes NumPy arrays", lambda: DataLoader(TensorDataset(INPUTS, LABELS), 10, collate_fn=numpy_batch)),
    ("stream of a subclass", lambda: DataLoader(Tags(), 10)),
]


def numpy_batch(items: list[Any]) -> Any:
    return np.stack([x.numpy() for x, _ in items]), [int(label) for _, label in items]


class Tags(Stream):
    def __iter__(self) -> Iterator[Any]:
        return iter([(x.as_subclass(Tagged), y.as_subclass(Tagged)) for x, y in super().__iter__()])


@pytest.mark.parametrize("make", [make for _, make in FOREIGN], ids=[name for name, _ in FOREIGN])
def test_the_same_numbers_in_another_class_are_read_alike(make: Callable[[], Any]) -> None:
    inputs, targets, sizes = read(make())
    assert type(inputs) is Tensor
    assert inputs.dtype == torch.float32
    assert torch.equal(inputs, INPUTS)
    assert type(targets) is Tensor
    assert torch.equal(targets, LABELS[:, None])
    assert sizes == [10, 10, 3]


def test_a_model_is_given_plain_tensors() -> None:
    for inputs, targets in source((INPUTS.as_subclass(Jealous), LABELS.as_subclass(Jealous))):
        assert type(inputs) is type(targets) is Tensor
        assert type(inputs + 1) is Tensor


def test_places_without_a_number_are_refused() -> None:
    hidden = np.ma.array(LABELS.numpy(), mask=LABELS.numpy() == 2)
    refused((INPUTS, hidden), "a masked array has missing elements.*ignore_index")
    refused((np.ma.array(INPUTS.numpy(), mask=INPUTS.numpy() > 0), LABELS), "a masked array has missing elements")
    refused(
        Pairs([np.ma.array(x.numpy(), mask=x.numpy() > 0) for x in INPUTS], LABELS),
        "a masked array has missing elements",
    )
    refused((INPUTS, pd.Series(LABELS, dtype="Int64").where(LABELS.numpy() > 1)), "the target of sample 0 is NaN")
    refused((INPUTS, pd.Series(["a"] * N, dtype="category")), "the targets must be an array of numbers, got Series")
    refused((torch.nested.nested_tensor([torch.zeros(2, 3)] * N), LABELS), "nested tensors are not supported")
    refused((INPUTS.to("meta"), LABELS), "meta device")


UNLABELED: list[Callable[[], Any]] = [
    lambda: (INPUTS,),
    lambda: (INPUTS, None),
    lambda: [INPUTS.numpy()],
    lambda: INPUTS,
    lambda: INPUTS.numpy(),
    lambda: TensorDataset(INPUTS),
    lambda: Pairs(INPUTS),
    lambda: DataLoader(Pairs(INPUTS.numpy()), batch_size=10, shuffle=True),
]


@pytest.mark.parametrize("make", UNLABELED)
def test_targets_may_be_left_out(make: Callable[[], Any]) -> None:
    inputs, targets, sizes = read(make())
    assert torch.equal(inputs, INPUTS)
    assert targets is None
    assert sizes == [10, 10, 3]
    assert source(make()).scan().targets is None


def test_batches_are_contiguous_and_of_their_own_memory() -> None:
    """A model that writes into its input must not write into the user's array."""
    mine = INPUTS.clone().transpose(2, 3)
    for inputs, _ in source((mine, LABELS)):
        assert inputs.is_contiguous()
        inputs.fill_(0.0)
    for inputs, _ in source(TensorDataset(mine)):
        inputs.fill_(0.0)
    assert torch.equal(mine, INPUTS.transpose(2, 3))


@pytest.mark.parametrize("dtype", [torch.int16, torch.int32, torch.int64])
def test_whole_numbers_are_token_ids(dtype: torch.dtype) -> None:
    tokens = torch.randint(50, (N, 7)).to(dtype)
    inputs, targets, _ = read((tokens, LABELS))
    assert inputs.dtype == torch.int64
    assert torch.equal(inputs, tokens.long())
    assert targets is not None
    assert targets.shape == (N, 1)


# Loaders.


@pytest.mark.parametrize("shuffle", [{"shuffle": True}, {"sampler": RandomSampler(range(N))}, {"drop_last": True}])
def test_a_loaders_shuffling_is_left_out_and_nothing_is_dropped(shuffle: dict[str, Any]) -> None:
    inputs, targets, sizes = read(DataLoader(TensorDataset(INPUTS, LABELS), batch_size=4, **shuffle))
    assert torch.equal(inputs, INPUTS)
    assert targets is not None
    assert torch.equal(targets[:, 0], LABELS)
    assert sizes == [4, 4, 4, 4, 4, 3]


CHOSEN = [17, 3, 11, 5, 8]
SELECTIONS: list[dict[str, Any]] = [
    {"sampler": SubsetRandomSampler(CHOSEN), "batch_size": 3},
    {"sampler": CHOSEN, "batch_size": 3},
    {"batch_sampler": [[17, 3, 11], [5, 8]]},
    {"batch_sampler": BatchSampler(SubsetRandomSampler(CHOSEN), 2, False)},
]


@pytest.mark.parametrize("selection", SELECTIONS)
def test_a_loaders_selection_is_kept(selection: dict[str, Any]) -> None:
    inputs, targets, sizes = read(DataLoader(TensorDataset(INPUTS, LABELS), **selection), 3)
    assert torch.equal(inputs, INPUTS[sorted(CHOSEN)])
    assert targets is not None
    assert torch.equal(targets[:, 0], LABELS[sorted(CHOSEN)])
    assert sizes == [3, 2]


@pytest.mark.parametrize(
    ("sampler", "count"),
    [
        (RandomSampler(range(N), num_samples=6), 6),
        (RandomSampler(range(N), replacement=True), N),
        (WeightedRandomSampler([1.0] * N, 9), 9),
        (SequentialSampler(range(7)), 7),
    ],
)
def test_a_random_selection_is_drawn_once(sampler: Any, count: int) -> None:
    inputs, _, _ = read(DataLoader(TensorDataset(INPUTS, LABELS), batch_size=4, sampler=sampler))
    assert len(inputs) == count
    known = set(content_keys(INPUTS).tolist())
    assert set(content_keys(inputs).tolist()) <= known


def test_a_data_set_that_makes_its_batches_is_left_to() -> None:
    inputs, targets, sizes = read(DataLoader(Pairs(INPUTS.split(6), LABELS.split(6)), batch_size=None, shuffle=True))
    assert torch.equal(inputs, INPUTS)
    assert targets is not None
    assert sizes == [6, 6, 6, 5]
    bulk = DataLoader(TensorDataset(INPUTS, LABELS), batch_size=None, sampler=BatchSampler(range(N), 9, False))
    inputs, _, sizes = read(bulk)
    assert torch.equal(inputs, INPUTS)
    assert sizes == [9, 9, 5]


def test_a_loaders_collate_function_is_used() -> None:
    def collate(items: list[Any]) -> tuple[Tensor, Tensor]:
        return torch.stack([item[0] for item in items]) * 2, torch.stack([item[1] for item in items]) + 1

    inputs, targets, _ = read(DataLoader(TensorDataset(INPUTS, LABELS), batch_size=4, shuffle=True, collate_fn=collate))
    assert torch.equal(inputs, INPUTS * 2)
    assert targets is not None
    assert torch.equal(targets[:, 0], LABELS + 1)


class Processes(Dataset[Any]):
    """The process that reads each sample, and what its worker was told at its start."""

    told = 0.0

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Any:
        return torch.tensor([float(index), float(os.getpid()), Processes.told])


def tell(worker: int) -> None:
    Processes.told = 5.0


def test_a_loaders_workers_are_used() -> None:
    made = torch.cat([inputs for inputs, _ in source(DataLoader(Processes(), 2, num_workers=2, worker_init_fn=tell))])
    assert made[:, 0].tolist() == list(range(8))
    assert len(set(made[:, 1].tolist())) == 2
    assert float(os.getpid()) not in made[:, 1]
    assert made[:, 2].tolist() == [5.0] * 8


def test_reading_leaves_the_random_numbers_of_the_user_alone() -> None:
    for data in (DataLoader(TensorDataset(INPUTS, LABELS), shuffle=True), TensorDataset(INPUTS), (INPUTS, LABELS)):
        torch.manual_seed(3)
        expected = torch.rand(4)
        torch.manual_seed(3)
        read(data)
        assert torch.equal(torch.rand(4), expected)


def test_an_example_is_made_of_as_many_batches_as_it_takes() -> None:
    for data in ((INPUTS, LABELS), DataLoader(TensorDataset(INPUTS, LABELS), batch_size=1)):
        assert torch.equal(source(data, 2).example(3), INPUTS[:3])
    assert torch.equal(source(INPUTS[:2]).example(3), INPUTS[:2])


# Targets.


@pytest.mark.parametrize(
    ("inputs", "targets", "expected"),
    [
        ((N, 6), (N,), (N, 1)),
        ((N, 6), (N, 1), (N, 1)),
        ((N, 6), (N, 3), (N, 3)),
        ((N, 6), (N, 6), (N, 6)),
        ((N, 2, 8), (N,), (N, 1)),
        ((N, 2, 8), (N, 3), (N, 3)),
        ((N, 2, 8), (N, 8), (N, 1, 8)),
        ((N, 2, 8), (N, 1, 8), (N, 1, 8)),
        ((N, 2, 8), (N, 3, 4), (N, 3, 4)),
        ((N, 2, 4, 5), (N,), (N, 1)),
        ((N, 2, 4, 5), (N, 7), (N, 7)),
        ((N, 2, 4, 5), (N, 4, 5), (N, 1, 4, 5)),
        ((N, 2, 4, 5), (N, 2, 3), (N, 1, 2, 3)),
        ((N, 2, 4, 5), (N, 3, 4, 5), (N, 3, 4, 5)),
        ((N, 1, 4, 5, 6), (N,), (N, 1)),
        ((N, 1, 4, 5, 6), (N, 2), (N, 2)),
        ((N, 1, 4, 5, 6), (N, 4, 5, 6), (N, 1, 4, 5, 6)),
        ((N, 1, 4, 5, 6), (N, 2, 4, 5, 6), (N, 2, 4, 5, 6)),
    ],
)
@pytest.mark.parametrize("kind", ["integer", "continuous"])
def test_targets_come_with_channels_and_their_own_space(
    inputs: tuple[int, ...], targets: tuple[int, ...], expected: tuple[int, ...], kind: str
) -> None:
    given = torch.randint(4, targets, generator=torch.Generator().manual_seed(0))
    given = given if kind == "integer" else given.double() / 3
    for data in ((torch.zeros(inputs), given), TensorDataset(torch.zeros(inputs), given)):
        _, made, _ = read(data)
        assert made is not None
        assert made.shape == expected
        assert made.dtype == (torch.int64 if kind == "integer" else torch.float32)
        assert torch.equal(made.flatten(), given.flatten().to(made.dtype))
        info = source(data).scan().targets
        assert info == TargetInfo("integer" if kind == "integer" else "continuous", expected[1], expected[2:])


@pytest.mark.parametrize(
    ("inputs", "targets"),
    [((N, 6), (N, 2, 3)), ((N, 2, 8), (N, 1, 8, 1)), ((N, 1, 4, 5, 6), (N, 4, 5)), ((N, 2, 4, 5), (N, 1, 2, 4, 5))],
)
def test_targets_of_another_shape_are_refused(inputs: tuple[int, ...], targets: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match=r"train data: targets of shape .* do not match inputs of shape"):
        source((torch.zeros(inputs), torch.zeros(targets))).scan()


def test_truth_values_are_masks() -> None:
    _, targets, _ = read((INPUTS, INPUTS[:, 0] > 0))
    assert targets is not None
    assert torch.equal(targets, (INPUTS[:, :1] > 0).long())


class Seen(TargetLabeler):
    needs_fit = True

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def observe(self, targets: Tensor) -> None:
        self.seen.append(targets)

    def label(self, targets: Tensor, spatial: tuple[int, ...]) -> Tensor:
        raise AssertionError("not asked for")


def test_labelers_see_all_targets_once() -> None:
    one, labelers = source((INPUTS, LABELS)), (Seen(), Seen())
    one.scan()
    one.scan(labelers)
    one.scan()
    for labeler in labelers:
        assert torch.equal(torch.cat(labeler.seen), LABELS[:, None])


# Keys.


def test_equal_inputs_have_keys_of_their_own() -> None:
    scan = source((torch.cat([INPUTS, INPUTS[:4]]), torch.cat([LABELS, LABELS[:4]]))).scan()
    assert len(np.unique(scan.keys)) == N + 4
    assert len(np.unique(scan.contents)) == N


def test_keys_are_of_the_inputs_and_contents_of_the_targets_too() -> None:
    with_labels, without, others = (source(data).scan() for data in ((INPUTS, LABELS), INPUTS, (INPUTS, LABELS + 1)))
    np.testing.assert_array_equal(with_labels.keys, without.keys)
    assert (with_labels.contents != without.contents).all()
    assert (with_labels.contents != others.contents).all()


# What is refused.


def refused(data: Any, message: str, batch_size: int = 10) -> None:
    with pytest.raises(DataError, match=message) as caught:
        source(data, batch_size).scan()
    assert str(caught.value).startswith("train data: ")


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.bool])
def test_unscaled_images_are_refused(dtype: torch.dtype) -> None:
    name = str(dtype).removeprefix("torch.")
    images = torch.ones(N, 3, 4, 4).to(dtype)
    for data in (images, images.numpy(), (images, LABELS), TensorDataset(images), Pairs(images.numpy())):
        refused(data, f"inputs are {name}; pass float32 inputs")


def test_complex_numbers_are_refused() -> None:
    refused((INPUTS + 1j,), "complex inputs")
    refused((INPUTS, LABELS + 1j), "complex targets")


@pytest.mark.parametrize(
    "data",
    [
        torch.zeros(0, 3),
        (np.zeros((0, 2, 4)), np.zeros(0)),
        TensorDataset(torch.zeros(0, 3)),
        Pairs([]),
        DataLoader(TensorDataset(torch.zeros(0, 3))),
        DataLoader(TensorDataset(INPUTS), sampler=SubsetRandomSampler([])),
        Stream(0),
    ],
)
def test_empty_data_are_refused(data: Any) -> None:
    refused(data, "the data set is empty")
    with pytest.raises(DataError, match="the data set is empty"):
        source(data).example(3)


@pytest.mark.parametrize(("targets", "count"), [(LABELS[:-1], "22 targets"), (torch.tensor(3), "a single target")])
def test_another_number_of_targets_than_inputs_is_refused(targets: Tensor, count: str) -> None:
    refused((INPUTS, targets), f"{count} for 23 inputs")
    refused((INPUTS.numpy(), targets.numpy()), f"{count} for 23 inputs")
    loader = DataLoader(Pairs(INPUTS), batch_size=N, collate_fn=lambda items: (torch.stack(items), targets))
    refused(loader, f"{count} for 23 inputs")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((3.0, 1), r"inputs must be of shape \(N, …\), got \(\)"),
        ((None, LABELS), r"inputs must be of shape \(N, …\), got None"),
        ((torch.zeros(N),), r"inputs must be of shape \(N, …\), got \(23,\)"),
        (Pairs(torch.zeros(N), LABELS), r"inputs must be of shape \(N, …\), got \(10,\)"),
        ((INPUTS, LABELS, LABELS), "got tuple of 3"),
        ((), "got tuple of 0"),
        (iter([INPUTS]), "got list_iterator"),
        ((x for x in INPUTS), "got generator"),
        ({"inputs": INPUTS}, "got dict"),
        ("digits", "got str"),
        (None, "got NoneType"),
        (3, "got int"),
        (((x for x in INPUTS), LABELS), "the inputs must be an array of numbers, got generator"),
        (
            (np.array([np.zeros(3), np.zeros(4)], dtype=object),),
            "the inputs must be an array of numbers, got array of object",
        ),
        ((INPUTS, np.array(["a"] * N)), "the targets must be an array of numbers, got array of <U1"),
        ((INPUTS, np.array([None] * N)), "the targets must be an array of numbers, got array of object"),
        (([[1.0, 2.0], [3.0]],), "the inputs must be an array of numbers, got list"),
        (TensorDataset(INPUTS, LABELS, LABELS), "got 3 parts"),
        (Pairs([()] * N), "got 0 parts"),
        (Pairs([{"x": 1.0}] * N), "an input must be a tensor, got an object of type dict"),
        (Pairs(INPUTS, ["cat"] * N), "a target must be "),
    ],
)
def test_other_things_are_refused(data: Any, message: str) -> None:
    refused(data, message)


class Lengthless(Dataset[Any]):
    def __getitem__(self, index: int) -> Tensor:
        return INPUTS[index]


def test_a_data_set_without_a_length_is_refused() -> None:
    refused(Lengthless(), "a Lengthless has no length")
    refused(DataLoader(Lengthless(), sampler=range(3)), "a Lengthless has no length")


def spoilt(values: Tensor, place: tuple[int, ...], value: float) -> Tensor:
    made = values.clone()
    made[place] = value
    return made


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(
    "wrap", [lambda *parts: parts, TensorDataset, lambda *parts: DataLoader(Pairs(*parts), 4, True)]
)
def test_the_first_sample_that_is_not_finite_is_named(value: float, wrap: Callable[..., Any]) -> None:
    bad = spoilt(spoilt(INPUTS, (13, 1, 3, 4), value), (17, 0, 0, 0), value)
    refused(wrap(bad, LABELS), "the input of sample 13 is NaN or infinite")
    refused(wrap(bad), "the input of sample 13 is NaN or infinite")
    targets = spoilt(torch.zeros(N), (21,), value)
    refused(wrap(INPUTS, targets), "the target of sample 21 is NaN or infinite")
    dense = spoilt(torch.zeros(N, 4, 5), (0, 3, 2), value)
    refused(wrap(INPUTS, dense), "the target of sample 0 is NaN or infinite")


def test_a_number_beyond_float32_is_infinite() -> None:
    refused((spoilt(INPUTS.double(), (4, 0, 0, 0), 1e300),), "the input of sample 4 is NaN or infinite")


def test_negative_labels_are_named() -> None:
    refused((INPUTS, spoilt(LABELS, (19,), -1)), r"the label of sample 19 is negative \(-1\)")
    masks = spoilt(torch.zeros(N, 4, 5, dtype=torch.int64), (12, 2, 2), -7)
    refused((INPUTS, masks), r"the label of sample 12 is negative \(-7\)")
    # Continuous targets may be what they like.
    source((INPUTS, -LABELS.float())).scan()


def test_samples_of_a_selection_go_by_their_own_numbers() -> None:
    data = TensorDataset(spoilt(INPUTS, (11, 0, 0, 0), float("nan")), LABELS)
    for selection in SELECTIONS:
        refused(DataLoader(data, **selection), "the input of sample 11 is NaN")


def test_inputs_of_different_shapes_are_refused() -> None:
    """Within a batch, where they cannot be put together, and between batches."""
    ragged = [torch.zeros(2, 4, 5)] * 12 + [torch.zeros(2, 4, 6)] * 2
    refused(Pairs(ragged), "batch that begins with sample 10 cannot be read: inputs or targets differ in shape")
    refused(
        Pairs([x.numpy() for x in ragged]), "batch that begins with sample 10 cannot be read: inputs or targets differ"
    )
    refused(Pairs(ragged), r"sample 12 has the shape \(2, 4, 6\), the first one \(2, 4, 5\)", batch_size=6)


def test_targets_that_change_their_kind_are_refused() -> None:
    def collate(items: list[Any]) -> Any:
        inputs = torch.stack([item[0] for item in items])
        targets = torch.stack([item[1] for item in items])
        return (inputs, targets / 2) if len(items) < 10 else (inputs, targets)

    def forgetful(items: list[Any]) -> Any:
        inputs = torch.stack([item[0] for item in items])
        return (inputs, torch.stack([item[1] for item in items])) if len(items) < 10 else inputs

    for function in (collate, forgetful):
        loader = DataLoader(TensorDataset(INPUTS, LABELS), 10, collate_fn=function)
        refused(loader, "targets differ in shape or type from sample 20 on")


class Broken(Pairs):
    def __getitem__(self, index: int) -> Any:
        if index == 7:
            raise FileNotFoundError("no image 7\nat all")
        return super().__getitem__(index)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_of_the_data_set_says_where(workers: int) -> None:
    loader = DataLoader(Broken(INPUTS), 3, num_workers=workers)
    what = "no image 7" if workers == 0 else "at all"
    with pytest.raises(DataError, match=f"the batch that begins with sample 6 cannot be read: .*{what}") as caught:
        source(loader).scan()
    assert isinstance(caught.value.__cause__, FileNotFoundError)


def test_an_error_of_the_reader_is_its_own() -> None:
    def stop(data: Any) -> None:
        for _ in source(data):
            raise ZeroDivisionError

    for data in ((INPUTS, LABELS), TensorDataset(INPUTS, LABELS)):
        with pytest.raises(ZeroDivisionError):
            stop(data)


# Data that change.


class Augmented(Pairs):
    """From the second reading on, one sample is another: its input, or its target."""

    def __init__(self, place: int, part: int) -> None:
        super().__init__(INPUTS, LABELS)
        self.place, self.part, self.readings = place, part, 0

    def __getitem__(self, index: int) -> Any:
        item = list(super().__getitem__(index))
        if index == self.place:
            self.readings += 1
            if self.readings > 1:
                item[self.part] = item[self.part] + 1
        return tuple(item)


@pytest.mark.parametrize("part", [0, 1])
@pytest.mark.parametrize("place", [0, 14, 22])
def test_a_sample_that_changes_is_named(place: int, part: int) -> None:
    for data in (Augmented(place, part), DataLoader(Augmented(place, part), 4, shuffle=True)):
        one = source(data)
        one.scan()
        read_until: list[int] = []
        with pytest.raises(DataError, match=f"train data: sample {place} differs from one reading to the next"):
            read_until.extend(start + len(inputs) for start, inputs, _ in one.checked())
        # No batch is given out that has the sample in it.
        assert all(end <= place for end in read_until)


def test_a_sample_that_changes_goes_by_its_own_number() -> None:
    one = source(DataLoader(Augmented(11, 0), 2, sampler=SubsetRandomSampler(CHOSEN)))
    one.scan()
    with pytest.raises(DataError, match="sample 11 differs"):
        list(one.checked())


class Growing(Stream):
    def __iter__(self) -> Iterator[Any]:
        made = super().__iter__()
        self.count += self.step
        return made

    step = 1


@pytest.mark.parametrize(
    ("step", "message"), [(1, "more than the 12 samples"), (-1, "11 samples, 12 at the first reading")]
)
def test_data_that_grow_or_shrink_are_refused(step: int, message: str) -> None:
    data = Growing(12)
    data.step = step
    one = source(data)
    one.scan()
    with pytest.raises(DataError, match=f"train data: {message}"):
        list(one.checked())


def test_a_checked_reading_scans_first() -> None:
    with pytest.raises(DataError, match="sample 13 is NaN"):
        next(source((spoilt(INPUTS, (13, 0, 0, 0), float("nan")),)).checked())


# Data that can be read once only.


class Once(IterableDataset[Any]):
    """Goes on where it was, as what reads from a socket does."""

    def __init__(self) -> None:
        self.samples = iter(list(zip(INPUTS, LABELS, strict=True)))

    def __iter__(self) -> Iterator[Any]:
        return self.samples


class Pulls(Pairs):
    """A data set with a length that takes its samples from a generator."""

    def __init__(self) -> None:
        super().__init__(INPUTS, LABELS)
        self.rest = iter(list(zip(INPUTS, LABELS, strict=True)))

    def __getitem__(self, index: int) -> Any:
        return next(self.rest)


class Generated(IterableDataset[Any]):
    def __init__(self) -> None:
        self.samples = (pair for pair in zip(INPUTS, LABELS, strict=True))

    def __iter__(self) -> Iterator[Any]:
        yield from self.samples


@pytest.mark.parametrize("read_again", [lambda one: list(one.checked()), lambda one: next(iter(one)), list])
@pytest.mark.parametrize(
    "make", [Once, Pulls, Generated, lambda: DataLoader(Once(), 4), lambda: DataLoader(Pulls(), 4)]
)
def test_data_that_can_be_read_once_say_so(make: Callable[[], Any], read_again: Callable[[DataSource], Any]) -> None:
    one = source(make())
    assert len(one.scan()) == N
    with pytest.raises(DataError, match=r"train data: .*must be the same each time"):
        read_again(one)


def test_a_data_set_that_stops_early_is_not_taken_for_a_shorter_one() -> None:
    data = Pulls()
    for _ in range(9):
        next(data.rest)
    refused(data, "the batch that begins with sample 10 cannot be read: StopIteration; .*the same each time")


def test_iterators_are_refused_with_the_reason() -> None:
    for data in ((x for x in INPUTS), iter(DataLoader(TensorDataset(INPUTS)))):
        refused(data, "must be the same each time")


def _pairs(count: int, kind: Callable[[Any, Any], Any]) -> list[Any]:
    x = np.arange(count * 4, dtype=np.float32).reshape(count, 1, 2, 2)
    return [kind(torch.from_numpy(x[i]), i % 3) for i in range(count)]


@pytest.mark.parametrize("count", [1, 2, 3, 7])
@pytest.mark.parametrize(
    "kind",
    [
        lambda x, y: (x, y),
        lambda x, y: (x.numpy(), np.int64(y)),
        lambda x, y: (x, torch.tensor(y)),
        lambda x, y: (x.clone(), y),
    ],
    ids=["number", "numpy", "tensor", "copy"],
)
def test_a_list_of_pairs_is_a_data_set(count: int, kind: Callable[[Any, Any], Any]) -> None:
    batches = list(DataSource(_pairs(count, kind), "test", 4))
    inputs = torch.cat([x for x, _ in batches])
    assert torch.equal(inputs.flatten(), torch.arange(count * 4.0))
    labels = torch.cat([y for _, y in batches if y is not None])
    assert labels.flatten().tolist() == [i % 3 for i in range(count)]


def test_a_list_of_lists_is_one_of_pairs_from_three_on() -> None:
    pairs = _pairs(3, lambda x, y: [x, y])
    assert len(DataSource(pairs, "test", 4).scan()) == 3
    unlabeled = DataSource([(x,) for x, _ in pairs], "test", 4)
    assert next(iter(unlabeled))[1] is None


def test_two_lists_are_inputs_and_targets() -> None:
    """As arrays are, of whatever length."""
    inputs = [torch.zeros(1, 2, 2), torch.ones(1, 2, 2)]
    for data in ([inputs, [0, 1]], (inputs, [0, 1]), ([torch.stack(inputs), torch.tensor([0, 1])])):
        ((x, y),) = DataSource(data, "test", 4)
        assert x.shape == (2, 1, 2, 2)
        assert y is not None
        assert y.flatten().tolist() == [0, 1]


def test_a_list_of_something_else_is_refused_with_what_is_taken() -> None:
    for data in ([1, 2, 3], [(1, 2), (3, 4), (5, 6)], [{"x": 1}] * 3):
        with pytest.raises(DataError, match=r"or a list of pairs \(input, target\), got list of 3"):
            DataSource(data, "test", 4)
