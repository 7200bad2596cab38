"""The measures in runs: the values of the pure functions, on the vectors that the run reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, cast

import genmeasures_geometry as geometry
import pytest
import torch
from genmeasures_geometry import (
    ClassMoments,
    ClassSeparation,
    Collapse,
    FeatureSpectrum,
    IntrinsicDimension,
    LabeledMoments,
    Moments,
    NeuralCollapse,
    Silhouette,
    SplitShift,
    Transferability,
)
from genmeasures_geometry.reading import StreamedMoments, Subsample
from torch import Tensor, nn

import genmeasures
from genmeasures.plugin import FeatureBatch, FeatureMeasure, KMeans, OptionError, Undefined, silhouette

SINGLE = 1e-4
"""Relative difference that features in float32 explain, in batches of other sizes."""

MEASURES: tuple[type[FeatureMeasure], ...] = (
    NeuralCollapse,
    Silhouette,
    FeatureSpectrum,
    IntrinsicDimension,
    Transferability,
    ClassSeparation,
    SplitShift,
)
Split = tuple[Tensor, Tensor]


@pytest.fixture(scope="module")
def data() -> tuple[Split, Split]:
    """Images of three classes, and others that are brighter."""
    generator = torch.Generator().manual_seed(0)
    splits = []
    for count, offset in ((90, 0.0), (70, 0.3)):
        classes = torch.arange(count) % 3
        images = torch.randn(count, 1, 4, 4, generator=generator) + 0.8 * (classes - 1).view(-1, 1, 1, 1) + offset
        splits.append((images, classes))
    return splits[0], splits[1]


@pytest.fixture
def net() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(48, 5)).eval()


def measured(net: nn.Module, data: tuple[Split, Split], *measures: FeatureMeasure, **options: Any) -> Any:
    settings = {"extractor": "whole_tensor", "batch_size": 16, "seed": 0, **options}
    return genmeasures.measure({"net": net}, data[0], data[1], measures=list(measures), **settings)


def outputs(net: nn.Module, inputs: Tensor) -> list[Tensor]:
    """The vectors of both layers."""
    with torch.no_grad():
        hidden = net[:2](inputs).flatten(1)  # type: ignore[index]
        return [hidden, net[3](hidden)]  # type: ignore[index]


def layers(ds: Any, name: str) -> list[float]:
    return [float(value) for value in ds[name].values[0]]


def expected(net: nn.Module, data: tuple[Split, Split], function: Callable[[Tensor, Tensor], float]) -> Any:
    return pytest.approx([function(x, data[0][1]) for x in outputs(net, data[0][0])], rel=SINGLE)


def test_labeled_measures_are_the_functions_of_the_training_vectors(net: nn.Module, data: tuple[Split, Split]) -> None:
    options = {"space": "pixel"}
    ds = measured(
        net,
        data,
        NeuralCollapse(),
        Silhouette(**options),
        Transferability(),
        ClassSeparation(**options, covariance="diagonal", distortion=0.5),
    )

    def classes(x: Tensor, y: Tensor) -> ClassMoments:
        return ClassMoments.of(x, y)

    functions: dict[str, Callable[[Tensor, Tensor], float]] = {
        "neural_collapse": lambda x, y: Collapse.of(x, y).within_between(),
        "neural_collapse_norms": lambda x, y: Collapse.of(x, y).norm_variation(),
        "neural_collapse_angles": lambda x, y: Collapse.of(x, y).angle_variation(),
        "neural_collapse_cdnv": lambda x, y: Collapse.of(x, y).distance_variance(),
        "nearest_center_accuracy": lambda x, y: Collapse.of(x, y).nearest_center_accuracy(),
        "calinski_harabasz": lambda x, y: Collapse.of(x, y).calinski_harabasz(),
        "silhouette": silhouette,
        "log_me": lambda x, y: geometry.log_me(LabeledMoments.of(x, y)),
        "h_score": lambda x, y: geometry.h_score(LabeledMoments.of(x, y)),
        "h_score_shrunk": lambda x, y: geometry.shrunk_h_score(LabeledMoments.of(x, y)),
        "trans_rate": lambda x, y: geometry.trans_rate(classes(x, y), 0.5),
        "bhattacharyya": lambda x, y: geometry.bhattacharyya(classes(x, y), "diagonal"),
    }
    for name, function in functions.items():
        if name == "bhattacharyya":  # a dead unit has no variance in any class
            continue
        assert layers(ds, name) == expected(net, data, function), name
        assert set(ds[f"{name}_status"].values.ravel()) == {"ok"}, name
    assert layers(ds, "bhattacharyya")[1] == pytest.approx(
        functions["bhattacharyya"](outputs(net, data[0][0])[1], data[0][1]), rel=SINGLE
    )


def test_unlabeled_measures_are_the_functions_of_the_training_vectors(
    net: nn.Module, data: tuple[Split, Split]
) -> None:
    inputs = (data[0][0], data[1][0])
    ds = measured(net, inputs, FeatureSpectrum(), IntrinsicDimension(neighbors=5))  # type: ignore[arg-type]
    functions: dict[str, Callable[[Tensor, Tensor], float]] = {
        "participation_ratio": lambda x, _: geometry.participation_ratio(Moments.of(x).axes()[0]),
        "feature_stable_rank": lambda x, _: geometry.stable_rank(Moments.of(x).axes()[0]),
        "alpha_req": lambda x, _: geometry.alpha_req(Moments.of(x).axes()[0]),
        "rank_me": lambda x, _: geometry.rank_me(torch.linalg.svdvals(x.double())),
        "intrinsic_dimension_two_nn": lambda x, _: geometry.two_nn(geometry.neighbor_distances(x, 5)),
        "intrinsic_dimension_levina_bickel": lambda x, _: geometry.levina_bickel(geometry.neighbor_distances(x, 5)),
        "intrinsic_dimension_mackay_ghahramani": lambda x, _: geometry.mackay_ghahramani(
            geometry.neighbor_distances(x, 5)
        ),
    }
    for name, function in functions.items():
        assert layers(ds, name) == expected(net, data, function), name


def test_shift_is_that_between_the_splits(net: nn.Module, data: tuple[Split, Split]) -> None:
    ds = measured(net, data, SplitShift(space="pixel"))
    pairs = list(zip(outputs(net, data[0][0]), outputs(net, data[1][0]), strict=True))
    for name, function in (("frechet_distance", geometry.frechet_distance), ("coral", geometry.coral)):
        values = [function(Moments.of(one), Moments.of(other)) for one, other in pairs]
        assert layers(ds, name) == pytest.approx(values, rel=SINGLE), name
    assert layers(ds, "mmd") == pytest.approx([geometry.mmd(one, other) for one, other in pairs], rel=SINGLE)
    same = measured(net, (data[0], data[0]), SplitShift(space="pixel"))
    assert layers(same, "frechet_distance") == pytest.approx([0, 0], abs=1e-6)
    assert max(layers(same, "mmd")) < 0  # the pairs of equal vectors count between the splits alone


def test_a_rotation_into_principal_components_changes_nothing(net: nn.Module, data: tuple[Split, Split]) -> None:
    """Where all components with variance are kept."""
    measures = (NeuralCollapse, Transferability, ClassSeparation, SplitShift)
    rotated = measured(net, data, *(cls(space="pca") for cls in measures))
    plain = measured(net, data, *(cls(space="pixel") for cls in measures))
    for name in ("neural_collapse", "nearest_center_accuracy", "h_score", "bhattacharyya", "frechet_distance", "mmd"):
        assert layers(rotated, name)[1] == pytest.approx(layers(plain, name)[1], rel=SINGLE), name


def test_labels_are_those_of_the_labeler(net: nn.Module, data: tuple[Split, Split]) -> None:
    ds = measured(net, data, NeuralCollapse(KMeans(k=4)), Silhouette(KMeans(k=4)))
    assert min(layers(ds, "nearest_center_accuracy")) > 0.9  # clusters are those of the nearest center
    by_class = measured(net, data, NeuralCollapse(), Silhouette())
    assert layers(ds, "silhouette")[1] > layers(by_class, "silhouette")[1]


def test_a_run_takes_no_more_forward_passes(net: nn.Module, data: tuple[Split, Split]) -> None:
    passes = 0

    def count(*_: object) -> None:
        nonlocal passes
        passes += 1

    net.register_forward_hook(count)
    counts = []
    for more in ([], [cls() for cls in MEASURES]):
        passes = 0
        names: list[Any] = ["davies_bouldin", "roughness", "confidence"]
        genmeasures.measure({"net": net}, data[0], data[1], measures=[*names, *more], batch_size=16)
        counts.append(passes)
    assert counts[0] == counts[1] > 0


@pytest.fixture(scope="module")
def wide() -> Split:
    """1,100 vectors of 150 dimensions near a subspace of three, of two classes."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(1100) % 2
    inside = torch.randn(1100, 3, generator=generator) + 2 * labels[:, None]
    noise = 0.01 * torch.randn(1100, 150, generator=generator)
    return inside @ torch.randn(3, 150, generator=generator) + noise + 1, labels


class Identity(nn.Module):
    """A linear layer that leaves its input as it is."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.layer = nn.Linear(size, size, bias=False)
        self.layer.weight.data = torch.eye(size)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.layer(x)
        return made


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Covariances of at most 140 dimensions, and subsamples of at most 100 vectors: the real limits take a minute."""
    for module in ("reading", "shift_measure"):
        monkeypatch.setattr(f"genmeasures_geometry.{module}.WIDEST", 140)
    monkeypatch.setattr("genmeasures_geometry.reading._KEPT_WIDE", 100)


@pytest.mark.usefixtures("narrow")
def test_wide_vectors_are_subsampled_and_the_status_says_so(wide: Split) -> None:
    net = Identity(150)
    ds = measured(net, (wide, wide), FeatureSpectrum(), Transferability(), SplitShift(space="pixel"))
    note = "note: a subsample of 100 of 1100 vectors, since they have 150 dimensions"
    for name in ("participation_ratio", "rank_me", "log_me", "h_score_shrunk"):
        assert ds[f"{name}_status"].item() == note
    assert ds.h_score_status.item().startswith("undefined: 100 vectors that span 99 dimensions are too few")
    assert ds.frechet_distance_status.item() == (
        "undefined: a covariance of 150 dimensions is too large: use space=pca"
    )
    assert ds.mmd_status.item() == "ok"
    x = wide[0].double()
    full = torch.linalg.svdvals(x - x.mean(0)).square()
    # Of 100 vectors: variances have relative standard deviations of about √(2/100).
    assert ds.participation_ratio.item() == pytest.approx(geometry.participation_ratio(full), rel=0.2)


@pytest.mark.usefixtures("narrow")
def test_moments_in_the_span_of_wide_vectors_are_exact(wide: Split) -> None:
    """With as many vectors as are kept."""
    x, y = wide[0][:100].double(), wide[1][:100]
    streamed = StreamedMoments(salt=5)
    for rows, ranks, labels in zip(x.split(30), torch.arange(100).split(30), y.split(30), strict=True):
        streamed.add(cast(FeatureBatch, SimpleNamespace(vectors=rows, rank=ranks)), "pixel", labels)
    assert streamed.note == ""
    found, direct = streamed.labeled(), LabeledMoments.of(x, y)
    assert found.total.dimension == 150
    for function in (geometry.log_me, geometry.shrunk_h_score):
        assert function(found) == pytest.approx(function(direct), rel=1e-8)
    singular = torch.linalg.svdvals(found.total.raw_root())[:100]
    torch.testing.assert_close(singular, torch.linalg.svdvals(x), rtol=1e-8, atol=0)


def test_a_subsample_depends_on_ranks_alone() -> None:
    x = torch.randn(500, 4, generator=torch.Generator().manual_seed(0))
    rank = torch.randperm(500, generator=torch.Generator().manual_seed(1))

    def draw(batch: int, order: Tensor, salt: int = 3) -> Tensor:
        sample = Subsample(50, salt)
        for rows in order.split(batch):
            sample.add(x[rows], rank[rows])
        assert sample.note == ""
        return sample.result()[0]

    one = draw(500, torch.arange(500))
    assert len(one) == 50
    assert torch.equal(one, draw(7, torch.arange(500).flip(0)))
    assert not torch.equal(one, draw(7, torch.arange(500), salt=4))


def test_a_subsample_of_long_vectors_is_smaller() -> None:
    sample = Subsample(100, 0)
    sample.add(torch.zeros(30, 2**19), torch.arange(30))
    assert len(sample.result()[0]) == 16
    assert sample.note == "a subsample of 16 of 30 vectors, since they have 524288 dimensions"
    with pytest.raises(Undefined, match="no vectors in the sample"):
        Subsample(100, 0).result()


def test_covariances_of_all_classes_that_are_too_large(wide: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("genmeasures_geometry.separation_measure._MOST", 2 * 150**2)
    assert measured(Identity(150), (wide, wide), ClassSeparation(space="pixel")).trans_rate_status.item() == "ok"
    monkeypatch.setattr("genmeasures_geometry.separation_measure._MOST", 2 * 150**2 - 1)
    ds = measured(Identity(150), (wide, wide), ClassSeparation(space="pixel"))
    assert ds.trans_rate_status.item() == (
        "undefined: a covariance of 150 dimensions for each class is too large: use space=pca"
    )


@pytest.mark.parametrize("cls", [NeuralCollapse, Silhouette, Transferability, ClassSeparation])
def test_a_single_class_has_no_value(cls: type[FeatureMeasure], net: nn.Module, data: tuple[Split, Split]) -> None:
    one = tuple((inputs, classes * 0) for inputs, classes in data)
    ds = measured(net, one, cls())  # type: ignore[arg-type]
    for variable in cls.variables:
        for status in ds[f"{variable.name}_status"].values.ravel():
            assert status.startswith("undefined: expected at least 2 c"), status


def options() -> Iterator[tuple[type[FeatureMeasure], dict[str, Any], str]]:
    for cls in MEASURES:
        names = cls.option_names()
        if "space" in names:
            yield cls, {"space": "patch"}, "space='patch' is unknown"
        if "split" in names:
            yield cls, {"split": "val"}, "split='val' is unknown"
        if "labeler" in names:
            yield cls, {"labeler": KMeans}, "labeler must be a labeler"
            yield cls, {"labeler": KMeans(repeats=2)}, "one clustering: set repeats=1"
        if "size" in names:
            yield cls, {"size": 9}, "size must be an integer ≥ 10, got 9"
    yield IntrinsicDimension, {"neighbors": 1}, "neighbors must be an integer from 2 to size − 1, got 1"
    yield IntrinsicDimension, {"neighbors": 50, "size": 50}, "neighbors must be an integer from 2"
    yield ClassSeparation, {"distortion": 0}, "distortion must be a number > 0, got 0"
    yield ClassSeparation, {"distortion": True}, "distortion must be a number > 0, got True"
    yield ClassSeparation, {"covariance": "tied"}, "covariance='tied' is unknown"


@pytest.mark.parametrize(("cls", "given", "message"), [*options()])
def test_invalid_options(cls: type[FeatureMeasure], given: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=f"{cls.__name__}: .*{message}"):
        cls(**given)


DEFAULTS: dict[type[FeatureMeasure], dict[str, Any]] = {
    NeuralCollapse: {"labeler": None, "space": "pixel", "split": "train"},
    Silhouette: {"labeler": None, "space": "pca", "split": "train", "size": 2000},
    FeatureSpectrum: {"split": "train"},
    IntrinsicDimension: {"space": "pixel", "split": "train", "size": 1000, "neighbors": 20},
    Transferability: {"labeler": None, "space": "pixel", "split": "train"},
    ClassSeparation: {
        "labeler": None,
        "space": "pca",
        "split": "train",
        "distortion": 0.01,
        "covariance": "spherical",
    },
    SplitShift: {"space": "pca", "size": 500},
}


def test_defaults() -> None:
    """The Hydra config is derived from them, and names of result files from the config."""
    for measure, defaults in DEFAULTS.items():
        assert measure().options() == defaults
        assert measure(**defaults).clone().options() == defaults


def test_the_measures_are_registered() -> None:
    registered: list[type] = []
    geometry.genmeasures_register(registered.append)
    assert tuple(registered) == MEASURES
