"""Confidence: its five variables by brute force, its laws, and the shape of table 2 of the paper."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import logsumexp, softmax
from scipy.stats import multivariate_normal
from torch import Tensor, nn

import genmeasures
from genmeasures.extractors import ReceptiveField, WholeTensor
from genmeasures.interfaces import Extractor, FeatureBatch, FeatureMeasure, Layer, Pass, Variable
from genmeasures.labelers import ClassLabel, KMeans
from genmeasures.measures import Confidence
from genmeasures.statistics.mixture import Mixtures, fit_mixtures_apart

Floats = NDArray[np.float64]
LAYER = Layer(0, "conv", "Conv2d", 4, (2, 2), 9, 16, 1.0, "Conv2d")


def batch(
    split: Any, inputs: Tensor, vectors: Tensor, projected: Tensor, apart: Tensor, labels: Tensor
) -> FeatureBatch:
    fields: dict[Any, Any] = {
        "vectors": lambda _: vectors,
        "projected": lambda _: projected,
        "projected_apart": lambda _: apart,
    }
    return FeatureBatch(LAYER, split, torch.arange(len(inputs)), inputs, fields, lambda _, __: labels)


@pytest.mark.parametrize("over", ["component", "mixture"])
def test_variables_are_those_of_brute_force(over: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Densities of SciPy; weights, posteriors and ranks written out, without any tie."""
    rng = np.random.default_rng(0)
    made: list[Mixtures] = []

    def recorded(*args: Any) -> tuple[Mixtures, Mixtures]:
        made.extend(fit_mixtures_apart(*args))
        return made[0], made[1]

    monkeypatch.setattr("genmeasures.measures.confidence.fit_mixtures_apart", recorded)
    monkeypatch.setattr("genmeasures.measures.confidence._FEW", 0)
    counts = {"train": 800, "test": 300}
    labels = {split: rng.integers(0, 3, n) for split, n in counts.items()}
    x = {split: rng.normal(size=(n, 4)) + 3 * labels[split][:, None] for split, n in counts.items()}
    inputs = {split: np.arange(n) // 5 for split, n in counts.items()}
    apart = {split: x[split][:, :3] * 2 for split in x}
    measure = Confidence(components=2, over=over)
    measure.start(LAYER, torch.Generator().manual_seed(0))
    for split in ("train", "test"):
        given = (x[split].astype(np.float32), x[split], apart[split], labels[split])
        measure.update(batch(split, torch.from_numpy(inputs[split]), *map(torch.from_numpy, given)))
        measure.end_pass()
    found = {name: getattr(value, "value", value) for name, value in measure.compute().items()}

    def log_densities(mixtures: Mixtures, points: Floats) -> tuple[Floats, Floats]:
        sigma = np.linalg.inv((mixtures.precisions @ mixtures.precisions.mT).numpy())
        each = np.stack(
            [multivariate_normal(m, s).logpdf(points) for m, s in zip(mixtures.means.numpy(), sigma, strict=True)], 1
        )
        cluster, weights = mixtures.cluster.numpy(), mixtures.log_weights.numpy()
        mixed = np.stack([logsumexp((each + weights)[:, cluster == i], axis=1) for i in range(3)], 1)
        return mixed, (each if over == "component" else mixed).max(1)

    mixed, log_density = log_densities(made[0], x["test"])
    norms = np.linalg.norm(x["test"].astype(np.float32), axis=1)
    held = inputs["train"] % 4 == 3
    reference, ranked = (log_densities(made[1], points)[1] for points in (apart["train"][held], apart["test"]))
    below = (reference < ranked[:, None]).sum(1)
    rank = (below + 0.5) / (len(reference) + 1)
    published = softmax(mixed, axis=1).max(1) * np.linalg.norm(x["test"], axis=1)
    cells = np.searchsorted(np.sort(reference), ranked)
    steps = np.arange(1, len(reference) + 2)
    distance = np.abs(np.array([(cells < step).mean() for step in steps]) - steps / (len(reference) + 1)).max()
    assert found["confidence"] == pytest.approx(np.average(log_density, weights=norms), rel=1e-6)
    assert found["confidence_unweighted"] == pytest.approx(log_density.mean(), rel=1e-8)
    assert found["confidence_published"] == pytest.approx(published.mean(), rel=1e-8)
    assert found["confidence_rank"] == pytest.approx(rank.mean(), rel=1e-8)
    assert found["confidence_shift"] == pytest.approx(distance, rel=1e-8)
    means = log_density.reshape(-1, 5).mean(1)
    assert found["confidence_unweighted_error"] == pytest.approx(means.std(ddof=1) / math.sqrt(len(means)), rel=1e-8)


def images(n: int, seed: int, size: int = 12) -> Tensor:
    """Smooth images, exchangeable."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(n, 1, size, size, generator=generator)
    return torch.nn.functional.avg_pool2d(noise, 3, 1, 1) * 2 + torch.randn(n, 1, 1, 1, generator=generator) / 2


def network(width: int = 8, scale: float = 1.0) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        first, second = nn.Conv2d(1, width, 3, bias=False), nn.Conv2d(width, width, 3, bias=False)
    net = nn.Sequential(first, nn.ReLU(), second, nn.ReLU())
    with torch.no_grad():
        first.weight.mul_(scale)
        second.weight.div_(scale)
    return net.eval()


def measured(net: nn.Module, train: Tensor, test: Tensor, extractor: Extractor | None = None, **options: Any) -> Any:
    return genmeasures.measure(
        [net], train, test, measures=[Confidence(**options)], extractor=extractor or ReceptiveField(cap=6000)
    )


@pytest.mark.parametrize("scale", [2.0**-10, 2.0, 2.0**7])
def test_scaling_a_layer_moves_confidence_by_minus_d_log_s(scale: float) -> None:
    """The next layer is divided by s, so that the network is the same function; powers of two round nothing."""
    train, test = images(80, 1), images(60, 2)
    plain, scaled = (measured(network(scale=s), train, test) for s in (1.0, scale))
    for name, moved in (("confidence", -8 * math.log(scale)), ("confidence_rank", 0.0), ("confidence_shift", 0.0)):
        np.testing.assert_allclose(scaled[name][0], plain[name][0] + [moved, 0.0], atol=1e-6)
    np.testing.assert_allclose(scaled.confidence_published[0], plain.confidence_published[0] * [scale, 1.0], rtol=1e-6)


@pytest.mark.parametrize("extractor", [WholeTensor(components=5), ReceptiveField(cap=4000, components=5)], ids=repr)
def test_the_rank_is_one_half_for_exchangeable_inputs(extractor: Extractor) -> None:
    """Whole tensors of 60 inputs have 800 dimensions: their principal components fit them alone."""
    ranks, errors, shifts = [], [], []
    for seed in range(12):
        x = images(120, 100 + seed)
        ds = measured(network(), x[:60], x[60:], extractor)
        ranks.append(ds.confidence_rank.values[0])
        errors.append(ds.confidence_rank_error.values[0])
        shifts.append(ds.confidence_shift.values[0])
    error = np.sqrt(np.mean(np.square(errors), 0) / 12)
    assert (np.abs(np.mean(ranks, 0) - 0.5) < 3 * error).all()
    assert (np.mean(shifts, 0) < 0.3).all()  # 15 inputs are held back: 0.25 is what 15 against 60 have on average
    x = images(120, 5)
    shifted = measured(network(), x[:60], 3 * x[60:] + 2, extractor)
    assert (shifted.confidence_rank.values < 0.2).all()
    assert (shifted.confidence_shift.values > 0.6).all()


def test_the_published_confidence_has_the_shape_of_table_2() -> None:
    """0.50, 0.74, 0.96, 0.99, 1 and 1.34 of that of 128 components for 3, 10, 64, 100, 128 and none.

    It rises and levels off with the explained variance, and jumps without PCA, since features are not centered then.
    """
    train, test = images(60, 1), images(60, 2)
    values = []
    for d in (3, 10, 64, 100, 128, None):
        extractor = ReceptiveField(cap=1500, components=d)
        values.append(measured(network(128), train, test, extractor).confidence_published.values[0, -1])
    shape = np.array(values) / values[4]
    assert (np.diff(shape) > -0.01).all()
    assert 0.3 < shape[0] < shape[1] < shape[2]
    assert (shape[2:5] > 0.9).all()
    assert shape[5] > 1.1


def test_without_pca_vectors_are_read_as_they_are() -> None:
    class Reads(FeatureMeasure):
        name = "reads"
        variables = (Variable("reads", "largest difference"),)
        passes = (Pass("test", "vectors", "projected", "projected_apart"),)

        def start(self, layer: Layer, generator: torch.Generator) -> None:
            self._largest = 0.0

        def update(self, batch: FeatureBatch) -> None:
            for projected in (batch.projected, batch.projected_apart):
                self._largest = max(self._largest, float((batch.vectors.double() - projected).abs().max()))

        def compute(self) -> float:
            return self._largest

    for extractor in (ReceptiveField(components=None), WholeTensor(components=None)):
        x = images(10, 0)
        assert genmeasures.measure([network()], x, x, measures=[Reads()], extractor=extractor).reads.max() == 0


def test_linear_densities_outside_of_float64_have_a_status() -> None:
    train, test = images(60, 1), images(60, 2)
    for scale, defined in ((2.0**-4, True), (2.0**-120, False)):
        ds = measured(network(16, scale), train, test, density="linear", labeler=KMeans(2))
        assert bool(ds.confidence.notnull()[0, 0]) is defined
        assert bool(ds.confidence_rank.notnull()[0, 0])
        if not defined:
            status = ds.confidence_status.values[0, 0]
            assert "outside the range of float64: use density=log" in status


@pytest.mark.parametrize(("split", "train"), [("train", True), ("test", False)])
def test_vectors_that_mixtures_are_fitted_on_have_no_rank(split: Any, train: bool) -> None:
    x = images(40, 0)
    ds = measured(network(), x if train else None, x, split=split)
    assert bool(ds.confidence.notnull().all())
    assert bool(ds.confidence_rank.isnull().all())
    assert "ranks are those of new vectors" in ds.confidence_rank_status.values[0, 0]


def test_few_inputs_have_no_rank() -> None:
    ds = measured(network(), images(3, 0), images(20, 1))
    assert bool(ds.confidence.notnull().all())
    assert "too few training inputs" in ds.confidence_rank_status.values[0, 0]


def test_errors_are_auxiliary() -> None:
    kinds = {variable.name: variable.auxiliary for variable in Confidence().called("tight").written()}
    assert {name for name, auxiliary in kinds.items() if auxiliary} == {
        f"tight{part}_error" for part in ("", "_unweighted", "_published", "_rank")
    }


def test_a_pixel_position_that_is_constant_leaves_the_rank_defined() -> None:
    """What is fitted apart sees all positions, however many of them an input has."""
    generator = torch.Generator("cpu").manual_seed(0)
    images = torch.randn(4096, 1, 4, 4, generator=generator, device="cpu")
    images[:, :, :2] = 0  # of every 2nd, 4th and 8th position, the first one is among these
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(1, 4, 1), nn.Tanh())
    ds = genmeasures.measure(
        [net], images[:2048], images[2048:], measures=["confidence"], extractor=ReceptiveField(components=3)
    )
    assert ds.confidence_rank.item() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(("inputs", "copies"), [(50, 4), (100, 2)])
def test_copies_of_an_input_are_held_back_together(inputs: int, copies: int) -> None:
    """Oversampling keeps the rank at one half; with copies on both sides it was 0.37 for four of them."""
    net = nn.Sequential(nn.Linear(12, 12, bias=False))
    with torch.no_grad():
        net[0].weight.copy_(torch.eye(12))
    ranks = []
    for seed in range(10):
        generator = torch.Generator("cpu").manual_seed(seed)
        x = torch.randn(inputs + 200, 12, generator=generator, device="cpu") ** 3
        train = x[:inputs].repeat(copies, 1)
        ranks.append(genmeasures.measure([net], train, x[inputs:], measures=["confidence"]).confidence_rank.item())
    error = np.std(ranks, ddof=1) / len(ranks) ** 0.5
    assert abs(np.mean(ranks) - 0.5) < 3 * error + 0.01
    assert error < 0.04


@pytest.mark.parametrize("count", [12, 14, 16, 30])
def test_fewer_vectors_than_dimensions_allow_give_no_absurd_density(count: int) -> None:
    """The log density of test vectors is within a few nats per dimension of that with plenty of vectors."""
    generator = torch.Generator("cpu").manual_seed(0)
    x = torch.randn(2000, 12, generator=generator, device="cpu")
    net = nn.Sequential(nn.Linear(12, 12, bias=False))
    with torch.no_grad():
        net[0].weight.copy_(torch.eye(12))
    few, plenty = (
        genmeasures.measure([net], x[:n], x[1000:], measures=["confidence"]).confidence_unweighted.item()
        for n in (count, 1000)
    )
    assert abs(few - plenty) < 3 * 10


def test_notes_of_ranks_are_those_of_the_mixtures_that_they_come_from() -> None:
    """90 vectors are enough for two components in three dimensions, those that are not held back are not."""
    generator = torch.Generator("cpu").manual_seed(0)
    x, one_class = (
        torch.randn(90, 3, generator=generator, device="cpu"),
        torch.zeros(90, dtype=torch.int64, device="cpu"),
    )
    measure = Confidence(ClassLabel(), components=2)
    ds = genmeasures.measure([nn.Linear(3, 3)], (x, one_class), (x, one_class), measures=[measure])
    assert ds.confidence_status.item() == "ok"
    assert "fewer than 2 mixture components for cluster 0 of" in ds.confidence_rank_status.item()
