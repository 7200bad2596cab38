"""How targets are read: the same value for what means the same, and a status that says so where it is not as given."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from sklearn.metrics import davies_bouldin_score
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import genmeasures
from genmeasures.data import DataSource, read_alike
from genmeasures.errors import DataError, OptionError
from genmeasures.labelers import Histogram
from genmeasures.measures import DaviesBouldin

N, CLASSES = 400, 20
Y = torch.arange(N) % CLASSES
X = torch.randn(CLASSES, 12, generator=torch.Generator().manual_seed(0))[Y]
X = X + 0.6 * torch.randn(N, 12, generator=torch.Generator().manual_seed(1))
IMAGES = torch.randn(24, 2, 6, 6, generator=torch.Generator().manual_seed(2))
MASKS = (IMAGES[:, 0] > 0).long() + (IMAGES[:, 1] > 0.5).long()

FLOATS = "note: floating-point targets with integer values were read as class numbers"
ONE_HOT = "note: one-hot targets were read as class numbers"


def flat_net() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Linear(12, 6)


def dense_net() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Conv2d(2, 5, 3, padding=1)


def measured(net: nn.Module, train: Any, test: Any = None, **options: Any) -> tuple[float, str, xr.Dataset]:
    measures = options.pop("measures", [DaviesBouldin(space="pixel")])
    ds = genmeasures.measure({"net": net}, train, test, measures=measures, **options)
    return float(ds.davies_bouldin[0, 0]), str(ds.davies_bouldin_status.values[0, 0]), ds


def sklearns(net: nn.Module, inputs: Tensor, labels: Tensor) -> float:
    """Of all pixels with a label ≥ 0."""
    with torch.no_grad():
        made = net(inputs)
    features = made if made.dim() == 2 else made.movedim(1, -1).flatten(0, -2)
    kept = labels.flatten() >= 0
    return float(davies_bouldin_score(features[kept].double().numpy(), labels.flatten()[kept].numpy()))


def one_hot(labels: Tensor, classes: int) -> Tensor:
    """(N, classes, *S)."""
    return nn.functional.one_hot(labels, classes).movedim(-1, 1)


CLASS_TARGETS: list[tuple[str, Any, str]] = [
    ("int64", Y, "ok"),
    ("uint8", Y.byte(), "ok"),
    ("column", Y[:, None], "ok"),
    ("float32", Y.float(), FLOATS),
    ("float64 column", Y.double()[:, None], FLOATS),
    ("float16", Y.half(), FLOATS),
    ("numpy", Y.numpy().astype(np.float32), FLOATS),
    ("a list of floats", Y.float().tolist(), FLOATS),
    ("pandas column with gaps once", pd.Series(Y.numpy(), index=np.arange(N)[::-1]).astype(float), FLOATS),
    ("one-hot floats", one_hot(Y, CLASSES).float(), ONE_HOT),
    ("one-hot integers", one_hot(Y, CLASSES), ONE_HOT),
    ("one-hot truth values", one_hot(Y, CLASSES).bool(), ONE_HOT),
    ("one-hot with a class that is never seen", one_hot(Y, CLASSES + 3).double(), ONE_HOT),
    ("pandas dummies", pd.get_dummies(pd.Series(Y.numpy())), ONE_HOT),
]


@pytest.mark.parametrize(("targets", "status"), [case[1:] for case in CLASS_TARGETS], ids=[c[0] for c in CLASS_TARGETS])
def test_classes_mean_the_same_however_they_are_written(targets: Any, status: str) -> None:
    net = flat_net()
    value, found, _ = measured(net, (X, targets))
    assert value == pytest.approx(sklearns(net, X, Y), rel=1e-5)
    assert found == status


MASK_TARGETS: list[tuple[str, Any, str]] = [
    ("int64", MASKS, "ok"),
    ("int16 with a channel", MASKS[:, None].short(), "ok"),
    ("float32", MASKS.float(), FLOATS),
    ("float64 with a channel", MASKS[:, None].double(), FLOATS),
    ("one-hot floats", one_hot(MASKS, 3).float(), ONE_HOT),
    ("one-hot integers", one_hot(MASKS, 3), ONE_HOT),
    ("one-hot truth values", one_hot(MASKS, 3).bool(), ONE_HOT),
]


@pytest.mark.parametrize(("targets", "status"), [case[1:] for case in MASK_TARGETS], ids=[c[0] for c in MASK_TARGETS])
def test_masks_mean_the_same_however_they_are_written(targets: Any, status: str) -> None:
    net = dense_net()
    for train in ((IMAGES, targets), TensorDataset(IMAGES, targets)):
        value, found, _ = measured(net, train, batch_size=7)
        assert value == pytest.approx(sklearns(net, IMAGES, MASKS), rel=1e-5)
        assert found == status


@pytest.mark.parametrize("kind", [torch.bool, torch.uint8, torch.float32, torch.float64])
def test_binary_masks(kind: torch.dtype) -> None:
    net, masks = dense_net(), (IMAGES[:, 0] > 0).to(kind)
    value, status, _ = measured(net, (IMAGES, masks))
    assert value == pytest.approx(sklearns(net, IMAGES, masks.long()), rel=1e-5)
    assert status == (FLOATS if kind.is_floating_point else "ok")


def source(targets: Any, name: str = "train", inputs: Any = None, **options: Any) -> DataSource:
    given = torch.zeros(len(targets), 3) if inputs is None else inputs
    return DataSource((given, targets), name, 16, **options)


def read(train: Any, test: Any = None, **options: Any) -> list[DataSource]:
    sources: dict[Any, DataSource] = {"train": source(train, **options)}
    if test is not None:
        sources["test"] = source(test, "test", **options)
    return list(read_alike(sources).values())


def targets_of(one: DataSource) -> Tensor:
    return torch.cat([targets for _, _, targets in one.checked() if targets is not None])


@pytest.mark.parametrize(
    ("targets", "notes"),
    [
        (torch.linspace(0, 1, 100), []),
        (torch.arange(100) / 2, []),
        # Regression on integers: as the diabetes data of scikit-learn, about two inputs a value.
        (torch.arange(400).float() % 200, ["continuous: 200 different ones are many for 400 inputs"]),
        (torch.arange(8000).float() % 1001, []),
        (torch.arange(100).float() % 3 - 1, ["continuous: some are negative"]),
        (torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 0.0]] * 20), ["multi-hot"]),
        (torch.tensor([[True, True, False], [False, False, False]] * 20), ["multi-hot"]),
        (torch.tensor([[0.9, 0.05, 0.05], [0.0, 0.3, 0.7]] * 20), ["soft labels"]),
        (torch.tensor([[0.9, 0.3, 0.05], [0.0, 0.3, 0.9]] * 20), []),
        (torch.rand(40, 1, generator=torch.Generator().manual_seed(0)), []),
    ],
)
def test_everything_else_is_continuous(targets: Tensor, notes: list[str]) -> None:
    (train,) = read(targets)
    info = train.scan().targets
    assert info is not None
    assert info.kind == "continuous"
    assert torch.equal(targets_of(train), targets.float().reshape(len(targets), -1))
    assert len(train.notes) == len(notes)
    assert all(part in note for part, note in zip(notes, train.notes, strict=True))


def test_few_values_are_classes_and_many_are_not() -> None:
    """The limits: four inputs a value, 1,000 classes of inputs, 200 of masks."""
    for targets, kind in (
        (torch.arange(80).float() % 20, "integer"),
        (torch.arange(80).float() % 21, "continuous"),
        (torch.arange(4000).float() % 1000, "integer"),
        (torch.arange(4004).float() % 1001, "continuous"),
    ):
        info = read(targets)[0].scan().targets
        assert info is not None
        assert info.kind == kind
    for values, kind in ((200, "integer"), (201, "continuous")):
        masks = (torch.arange(4 * 100).float() % values).view(4, 10, 10)
        one = read_alike({"train": source(masks, inputs=torch.zeros(4, 1, 10, 10))})["train"]
        assert one.scan().targets is not None
        assert one.scan().targets.kind == kind  # type: ignore[union-attr]


def test_integers_are_classes_however_many() -> None:
    targets = torch.arange(6000) * 7
    (train,) = read(targets)
    assert torch.equal(targets_of(train)[:, 0], targets)
    assert train.notes == ()


def test_regression_targets_are_binned_as_before() -> None:
    net, targets = flat_net(), (X[:, 0] * 100).round() + 500
    value, status, _ = measured(net, (X, targets))
    low, high = float(targets.min()), float(targets.max())
    edges = np.histogram_bin_edges([low, high], 10)[1:-1]
    bins = torch.from_numpy(np.digitize(targets.numpy().astype(np.float64), edges))
    assert value == pytest.approx(sklearns(net, X, bins), rel=1e-5)
    assert "read as continuous" in status


def test_a_labeler_that_is_chosen_gets_class_numbers_too() -> None:
    net = flat_net()
    value, status, _ = measured(net, (X, Y.float()), measures=[DaviesBouldin(Histogram(20), space="pixel")])
    assert value == pytest.approx(sklearns(net, X, Y), rel=1e-5)
    assert status == FLOATS


# Training and test targets.


@pytest.mark.parametrize("test", [Y, Y.float(), Y[:3].float(), one_hot(Y, CLASSES).float(), one_hot(Y, CLASSES)])
@pytest.mark.parametrize("train", [Y, Y.float(), one_hot(Y, CLASSES).float()])
def test_a_test_split_is_read_as_the_training_split(train: Tensor, test: Tensor) -> None:
    first, second = read(train, test)
    assert torch.equal(targets_of(first)[:, 0], Y)
    assert torch.equal(targets_of(second)[:, 0], Y[: len(test)])


def test_a_continuous_test_split_makes_integers_continuous() -> None:
    """The training targets are integers by chance; so are, in the other case, the test targets."""
    first, second = read(Y.float(), Y / 7)
    assert targets_of(first).dtype == targets_of(second).dtype == torch.float32
    assert "the test targets are not class numbers" in "".join(first.notes)
    assert first.notes == second.notes
    first, second = read(Y / 7, Y.float())
    assert targets_of(second).dtype == torch.float32
    first, second = read(Y / 7, Y)
    assert targets_of(second).dtype == torch.float32
    assert "integer test targets were read as continuous" in "".join(second.notes)


def test_splits_that_cannot_be_read_alike_say_so() -> None:
    for train, test in ((Y, Y / 7), (torch.rand(N, CLASSES), Y)):
        for one in read(train, test):
            assert "train targets were read as" in one.notes[-1]
            assert "test targets as" in one.notes[-1]


def test_the_status_of_a_test_value_tells_how_its_targets_were_read() -> None:
    _, status, ds = measured(
        flat_net(), (X, Y), (X, Y.float()), measures=[DaviesBouldin(space="pixel", split="test"), "roughness"]
    )
    assert status == FLOATS
    assert ds.roughness_status.values[0, 0] == "ok"  # reads no targets
    _, status, _ = measured(flat_net(), (X, Y), (X, Y.float()), measures=[DaviesBouldin(space="pixel"), "roughness"])
    assert status == "ok"


def test_channels_that_come_last_are_refused() -> None:
    targets = nn.functional.one_hot(MASKS, 3).float()
    with pytest.raises(DataError, match="have their channels last"):
        measured(dense_net(), (IMAGES, targets))


# Labels that mean "no label".


@pytest.mark.parametrize("value", [255, -1, 7, 2**31])
@pytest.mark.parametrize("kind", [torch.int64, torch.float64])
def test_ignored_targets_come_as_no_label(value: int, kind: torch.dtype) -> None:
    given = torch.where(Y == 3, value, Y).to(kind)
    (train,) = read(given, ignore_index=value)
    expected = torch.where((Y == 3) | (value == Y), -1, Y)
    assert torch.equal(targets_of(train)[:, 0], expected)
    assert train.notes == ((FLOATS.removeprefix("note: "),) if kind.is_floating_point else ())


@pytest.mark.parametrize("value", [math.nan, -9999.0, 0.5, math.inf])
def test_ignored_values_of_continuous_targets(value: float) -> None:
    given = torch.linspace(0, 1, 100)
    given[::3] = value
    (train,) = read(given, ignore_index=value)
    made = targets_of(train)[:, 0]
    assert bool(torch.isnan(made[::3]).all())
    others = torch.ones(100, dtype=torch.bool)
    others[::3] = False
    assert torch.equal(made[others], given[others])


def test_a_row_of_one_hot_targets_can_be_ignored() -> None:
    given = one_hot(Y, CLASSES).float()
    given[5:9] = 255
    (train,) = read(given, ignore_index=255)
    expected = Y.clone()
    expected[5:9] = -1
    assert torch.equal(targets_of(train)[:, 0], expected)


def test_minus_100_is_no_class() -> None:
    net = flat_net()
    given = torch.where(Y < 5, -100, Y)
    for targets in (given, given.float(), given[:, None]):
        value, status, _ = measured(net, (X, targets))
        assert value == pytest.approx(sklearns(net, X, given), rel=1e-5)
        assert "label -100 was left out" in status
    value, status, _ = measured(net, (X, given), ignore_index=-100)
    assert value == pytest.approx(sklearns(net, X, given), rel=1e-5)
    assert status == "ok"


def test_other_negative_labels_are_refused_with_the_remedy() -> None:
    given = torch.where(Y == 3, -1, Y)
    with pytest.raises(DataError, match=r"the label of sample 3 is negative \(-1\).*ignore_index=-1 leaves it out"):
        measured(flat_net(), (X, given))
    given[0] = -2
    with pytest.raises(DataError, match=r"sample 0 is negative \(-2\)"):
        measured(flat_net(), (X, given), ignore_index=-1)


@pytest.mark.parametrize(
    ("labels", "is_noted"),
    [
        ([0, 1, 255], True),
        ([3, 9, 255], True),
        ([0, 255], False),  # a binary mask of 8 bits
        ([*range(256)], False),
        ([0, 1, 254, 255], False),
        ([0, 1, 255, 256], False),
        ([0, 1, 2], False),
    ],
)
@pytest.mark.parametrize("batch", [3, 1000])
def test_255_is_noted_where_it_looks_like_no_label(labels: list[int], is_noted: bool, batch: int) -> None:
    targets = torch.tensor(labels * 3)
    one = DataSource((torch.zeros(len(targets), 2), targets), "train", batch)
    train = read_alike({"train": one})["train"]
    assert torch.equal(targets_of(train)[:, 0], targets)
    assert [("ignore_index=255" in note) for note in train.notes] == [True] * is_noted


@pytest.mark.parametrize("value", [True, "255", [255], object()])
def test_an_ignore_index_that_is_no_number_is_refused(value: Any) -> None:
    with pytest.raises(OptionError, match="ignore_index must be a number"):
        measured(flat_net(), (X, Y), ignore_index=value)


def test_the_reading_changes_the_key_of_kept_results_and_nothing_else_does() -> None:
    plain, same = read(Y)[0].scan().contents, read(Y, ignore_index=255)[0].scan().contents
    np.testing.assert_array_equal(plain, same)  # no target is 255
    assert (read(Y, ignore_index=3)[0].scan().contents != plain).all()


def test_a_kept_result_is_not_taken_for_another_ignore_index(tmp_path: Path) -> None:
    net = flat_net()
    values = [measured(net, (X, Y), keep=tmp_path, ignore_index=index)[0] for index in (None, 3, None)]
    assert values[0] == values[2]
    assert values[0] != values[1]
    assert values[1] == pytest.approx(sklearns(net, X, torch.where(Y == 3, -1, Y)), rel=1e-5)
