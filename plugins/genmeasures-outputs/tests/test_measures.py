"""The measures in runs and on stored outputs, against SciPy, scikit-learn and NumPy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import genmeasures_outputs as outputs
import numpy as np
import pytest
import torch
from genmeasures_outputs import Calibration, OutputConfidence, OutputDistribution, OutputMargin
from genmeasures_outputs.stacked_rows import StackedRows
from numpy.typing import NDArray
from scipy.special import log_softmax, logsumexp, softmax
from scipy.stats import entropy as scipy_entropy
from scipy.stats import sem
from sklearn.metrics import log_loss
from torch import Tensor, nn

import genmeasures
from genmeasures.plugin import OptionError, Outcome, OutputMeasure, evaluate

Floats = NDArray[np.float64]
SINGLE = 1e-5
"""Relative difference that float32 logits of batches of other sizes explain."""
EXACT = 1e-12
"""Relative difference of float64 sums in another order."""
MEASURES: tuple[type[OutputMeasure], ...] = (OutputMargin, OutputConfidence, Calibration, OutputDistribution)


@pytest.fixture(scope="module")
def data() -> tuple[Tensor, Tensor]:
    """Vectors of four classes that overlap a little."""
    generator = torch.Generator().manual_seed(0)
    classes = torch.arange(150) % 4
    return torch.randn(150, 6, generator=generator) + 2 * torch.eye(4, 6)[classes], classes


@pytest.fixture(scope="module")
def net() -> nn.Module:
    """A network that is right for most of them."""
    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 4)).eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(4, 6))  # type: ignore[union-attr, operator]
        model[0].bias.zero_()  # type: ignore[union-attr, operator]
        model[2].weight.copy_(2 * torch.eye(4) - 0.3)  # type: ignore[union-attr, operator]
        model[2].bias.copy_(torch.tensor([0.1, -0.2, 0.3, 0.0]))  # type: ignore[union-attr, operator]
    return model


@pytest.fixture(scope="module")
def logits(net: nn.Module, data: tuple[Tensor, Tensor]) -> Floats:
    with torch.no_grad():
        return net(data[0]).double().numpy()


@pytest.fixture(scope="module")
def labels(data: tuple[Tensor, Tensor]) -> NDArray[np.int64]:
    return data[1].numpy()


def measured(net: nn.Module, data: tuple[Tensor, ...], *measures: OutputMeasure, **options: Any) -> dict[str, float]:
    settings = {"batch_size": 16, "seed": 0, **options}
    ds = genmeasures.measure({"net": net}, data, data, validation=data, measures=list(measures), **settings)
    written = [variable.name for measure in measures for variable in measure.written()]
    return {name: float(ds[name].values[0]) for name in written}


def values(outcomes: Mapping[str, Outcome]) -> dict[str, float]:
    return {name: float(outcome.value) for name, outcome in outcomes.items()}


def both(
    measure: OutputMeasure, net: nn.Module, data: tuple[Tensor, Tensor], stored: tuple[Floats, NDArray[np.int64]]
) -> list[tuple[dict[str, float], float]]:
    """The values in a run and on stored outputs, each with the tolerance."""
    (split,) = measure.splits
    return [
        (measured(net, data, measure), SINGLE),
        (values(evaluate(measure, {split: stored})), EXACT),
    ]


# Values ---------------------------------------------------------------------------------------------------------


def test_margins(net: nn.Module, data: tuple[Tensor, Tensor], logits: Floats, labels: NDArray[np.int64]) -> None:
    gamma = np.array([f[y] - max(f[j] for j in range(4) if j != y) for f, y in zip(logits, labels, strict=True)])
    for found, tolerance in both(OutputMargin(), net, data, (logits, labels)):
        assert found["output_margin"] == pytest.approx(gamma.mean(), rel=tolerance)
        assert found["output_margin_error"] == pytest.approx(sem(gamma), rel=tolerance)
        assert found["output_margin_median"] == pytest.approx(np.median(gamma), rel=tolerance)
        assert found["output_margin_p10"] == pytest.approx(np.percentile(gamma, 10), rel=tolerance)
        assert np.percentile(gamma, 10) < 0  # so that the sign is tested
        assert math.isnan(found["output_margin_inverse_squared"])


def test_the_inverse_squared_margin_is_defined_for_a_network_with_few_errors(logits: Floats) -> None:
    predicted = logits.argmax(1)
    found = evaluate(OutputMargin(), {"train": (logits, predicted)})
    expected = 1 / np.percentile(np.diff(np.sort(logits, axis=1), axis=1)[:, -1], 10) ** 2
    assert found["output_margin_inverse_squared"].value == pytest.approx(expected, rel=EXACT)
    assert found["output_margin_inverse_squared"].status == "ok"


def test_a_negative_tenth_percentile_has_no_inverse() -> None:
    """A widely copied implementation takes its absolute value, and calls a bad network good."""
    logits = np.array([[0.0, 4.0]] * 5 + [[4.0, 0.0]] * 5)
    bad = evaluate(OutputMargin(), {"train": (logits, np.array([1] * 3 + [0] * 7))})
    good = evaluate(OutputMargin(), {"train": (logits, np.array([1] * 5 + [0] * 5))})
    assert bad["output_margin_p10"].value == -4
    assert good["output_margin_inverse_squared"].value == 1 / 16  # which is 1/|−4|² too
    assert bad["output_margin_inverse_squared"].status == (
        "undefined: the 10th percentile of the margins is -4, and must be positive"
    )


def test_confidence(net: nn.Module, data: tuple[Tensor, Tensor], logits: Floats, labels: NDArray[np.int64]) -> None:
    p = softmax(logits, axis=1)
    expected = {
        "average_confidence": p.max(axis=1),
        "output_entropy": scipy_entropy(p, axis=1),
        "output_energy": -2.5 * logsumexp(logits / 2.5, axis=1),
    }
    for found, tolerance in both(OutputConfidence(temperature=2.5), net, data, (logits, labels)):
        for name, each in expected.items():
            assert found[name] == pytest.approx(each.mean(), rel=tolerance), name
            assert found[f"{name}_error"] == pytest.approx(sem(each), rel=tolerance), name


def test_calibration(net: nn.Module, data: tuple[Tensor, Tensor], logits: Floats, labels: NDArray[np.int64]) -> None:
    p = softmax(logits, axis=1)
    losses = -log_softmax(logits, axis=1)[np.arange(150), labels]
    squares = ((p - np.eye(4)[labels]) ** 2).sum(axis=1)
    confidence, correct = p.max(axis=1), p.argmax(axis=1) == labels
    gap = 0.0
    for low in np.arange(15) / 15:
        inside = (confidence >= low) & (confidence < low + 1 / 15)
        if inside.any():
            gap += inside.mean() * abs(correct[inside].mean() - confidence[inside].mean())
    for found, tolerance in both(Calibration(), net, data, (logits, labels)):
        assert found["negative_log_likelihood"] == pytest.approx(log_loss(labels, p), rel=tolerance)
        assert found["negative_log_likelihood_error"] == pytest.approx(sem(losses), rel=tolerance)
        assert found["brier_score"] == pytest.approx(squares.mean(), rel=tolerance)
        assert found["brier_score_error"] == pytest.approx(sem(squares), rel=tolerance)
        assert found["expected_calibration_error"] == pytest.approx(gap, rel=tolerance)


def test_distribution(net: nn.Module, data: tuple[Tensor, Tensor], logits: Floats, labels: NDArray[np.int64]) -> None:
    p = softmax(logits, axis=1)
    shifted = logits - logits.min(axis=1, keepdims=True)
    taylor = 1 + shifted + shifted**2 / 2
    q = taylor / taylor.sum(axis=1, keepdims=True)
    assert -np.log(p).mean() < 5  # or else it were the softmax
    energies = -logsumexp(logits, axis=1)
    for found, tolerance in both(OutputDistribution(), net, data, (logits, labels)):
        assert found["nuclear_norm"] == pytest.approx(np.linalg.norm(p, "nuc") / math.sqrt(4 * 150), rel=tolerance)
        assert found["mano"] == pytest.approx((q**4).mean() ** 0.25, rel=tolerance)
        assert found["meta_distribution_energy"] == pytest.approx(-log_softmax(energies).mean(), rel=tolerance)


def test_mano_of_certain_outputs_is_normalized_by_the_softmax(logits: Floats) -> None:
    certain = 20 * logits
    p = softmax(certain, axis=1)
    assert -log_softmax(certain, axis=1).mean() > 5
    found = evaluate(OutputDistribution(), {"test": certain})["mano"]
    # Logits are read as float32.
    assert found.value == pytest.approx((p**4).mean() ** 0.25, rel=SINGLE)
    assert found.status.startswith("note: normalized by the softmax: −log p has the mean ")


def test_one_normalization_of_mano_for_all_models(logits: Floats) -> None:
    stored, certain = {"test": logits}, {"test": 20 * logits}  # on the two sides of the criterion
    by_softmax, by_taylor = (OutputDistribution(normalization=name) for name in ("softmax", "taylor"))
    automatic = OutputDistribution()
    assert evaluate(by_taylor, stored)["mano"] == evaluate(automatic, stored)["mano"]
    assert evaluate(by_softmax, certain)["mano"] == Outcome(values(evaluate(automatic, certain))["mano"], "ok")
    assert values(evaluate(by_softmax, stored))["mano"] == pytest.approx((softmax(logits, axis=1) ** 4).mean() ** 0.25)
    far = 20 * logits
    taylor = 1 + (far - far.min(axis=1, keepdims=True)) + (far - far.min(axis=1, keepdims=True)) ** 2 / 2
    q = taylor / taylor.sum(axis=1, keepdims=True)
    assert values(evaluate(by_taylor, certain))["mano"] == pytest.approx((q**4).mean() ** 0.25, rel=SINGLE)


def test_meta_distribution_energy_without_the_number_of_outputs(logits: Floats) -> None:
    once, twice = ({"test": np.tile(logits, (times, 1))} for times in (1, 2))

    def mde(stored: Any, centered: bool) -> float:
        return values(evaluate(OutputDistribution(centered=centered), stored))["meta_distribution_energy"]

    assert mde(once, True) == pytest.approx(mde(once, False) - math.log(150), abs=EXACT)
    assert mde(twice, True) == pytest.approx(mde(once, True), rel=1e-9)
    assert mde(twice, False) == pytest.approx(mde(once, False) + math.log(2), rel=EXACT)


def test_measures_are_the_functions_of_stored_logits() -> None:
    rng = np.random.default_rng(3)
    dense = (4 * rng.normal(size=(7, 3, 5, 4))).astype(np.float32).astype(np.float64)
    masks = rng.integers(-1, 3, (7, 5, 4))
    stored = {"test": (dense, masks)}
    found: dict[str, float] = {}
    for measure in MEASURES:
        found |= values(evaluate(measure(split="test"), stored))
    statistics = outputs.margin_statistics(dense, masks)
    expected = {
        "output_margin": statistics["mean"],
        "output_margin_median": statistics["median"],
        "output_margin_p10": statistics["p10"],
        "average_confidence": outputs.average_confidence(dense),
        "output_entropy": outputs.entropy(dense).mean(),
        "output_energy": outputs.energy(dense).mean(),
        "negative_log_likelihood": outputs.negative_log_likelihood(dense, masks),
        "brier_score": outputs.brier_score(dense, masks),
        "expected_calibration_error": outputs.calibration_error(dense, masks),
        "nuclear_norm": outputs.nuclear_norm(dense),
        "mano": outputs.mano(dense),
        "meta_distribution_energy": outputs.meta_distribution_energy(dense),
    }
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=EXACT), name


# Batches, pixels and large numbers ------------------------------------------------------------------------------


def test_values_do_not_depend_on_the_batch_size(net: nn.Module, data: tuple[Tensor, Tensor]) -> None:
    measures = [measure(split="validation") for measure in MEASURES]
    one, all_at_once = (measured(net, data, *measures, batch_size=size) for size in (1, 150))
    assert one == pytest.approx(all_at_once, rel=SINGLE, nan_ok=True)


def test_errors_of_dense_outputs_are_over_inputs() -> None:
    """The pixels of an input depend on each other: copying each to four makes the error no smaller."""
    rng = np.random.default_rng(0)
    coarse, masks = rng.normal(size=(30, 3, 2, 2)), rng.integers(0, 3, (30, 2, 2))
    fine, fine_masks = coarse.repeat(2, 2).repeat(2, 3), masks.repeat(2, 1).repeat(2, 2)
    for measure in (OutputMargin(split="test"), OutputConfidence(), Calibration()):
        first = values(evaluate(measure, {"test": (coarse, masks)}))
        second = values(evaluate(measure, {"test": (fine, fine_masks)}))
        names = [name for name in first if name.endswith("_error") and name != "expected_calibration_error"]
        assert names
        for name in names:
            assert first[name] == pytest.approx(second[name], rel=1e-9), name
    by_input = softmax(coarse, axis=1).max(axis=1).mean(axis=(1, 2))
    found = values(evaluate(OutputConfidence(), {"test": coarse}))
    assert found["average_confidence_error"] == pytest.approx(sem(by_input), rel=1e-6)  # float32 logits


def test_percentiles_of_many_pixels_are_those_of_a_subsample() -> None:
    rng = np.random.default_rng(1)
    dense, masks = rng.normal(size=(40, 3, 16, 16)), rng.integers(-1, 3, (40, 16, 16))
    labeled = int((masks >= 0).sum())
    stored = {"test": (dense, masks)}
    every = evaluate(OutputMargin(split="test"), stored)
    some = evaluate(OutputMargin(split="test", size=2000), stored)
    assert every["output_margin_median"].status == "ok"
    for name in ("output_margin_median", "output_margin_p10"):
        assert some[name].status == f"note: a subsample of 2000 of {labeled} pixels"
        # Five standard errors of the median of 2000 margins, whose density at the median is above 0.25.
        assert some[name].value == pytest.approx(every[name].value, abs=5 / (2 * 0.25 * math.sqrt(2000)))
        assert some[name].value != every[name].value
    assert some["output_margin"] == every["output_margin"]
    other = evaluate(OutputMargin(split="test", size=2000), stored, seed=1)
    assert other["output_margin_median"].value != some["output_margin_median"].value


class _Pixels(nn.Module):
    """Two logits per pixel."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, -2 * x], 1)


@pytest.mark.parametrize("size", [10, 50, 100_000])
def test_the_subsample_of_pixels_does_not_depend_on_the_batch_size(size: int) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(20, 1, 5, 5, generator=generator)
    masks = torch.randint(-1, 2, (20, 5, 5), generator=generator)
    net = nn.Sequential(nn.Conv2d(1, 1, 1), _Pixels())
    with torch.no_grad():
        net[0].weight.fill_(1.5)  # type: ignore[union-attr, operator]
        net[0].bias.fill_(0.5)  # type: ignore[union-attr, operator]
    measure = OutputMargin(split="test", size=size)
    one, many = (measured(net, (images, masks), measure, batch_size=by, ignore_index=-1) for by in (3, 20))
    # Float32 outputs that are the same for any batch size: each is of one input alone.
    assert one == pytest.approx(many, rel=SINGLE, nan_ok=True)


def test_small_singular_values_count() -> None:
    """The roots of the eigenvalues of PᵀP would lose them."""
    rng = np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.normal(size=(n, 20)))[0] for n in (9000, 20))
    sigma = np.array([1.0] + [1e-9] * 19)
    matrix = left * sigma @ right.T
    rows = StackedRows()
    for part in torch.from_numpy(matrix).split(500):
        rows.add(part)
    assert len(rows) == 9000
    small = rows.singular_values().numpy()[1:]
    np.testing.assert_allclose(small, 1e-9, rtol=1e-5)  # 1e-16 of the largest one
    gram = np.sqrt(np.abs(np.linalg.eigvalsh(matrix.T @ matrix)))[:-1]
    assert np.abs(gram - 1e-9).max() > 1e-10  # off by more than a tenth


@pytest.mark.parametrize("count", [1, 3, 8, 20, 6000])
def test_nuclear_norm_with_more_or_fewer_inputs_than_classes(count: int) -> None:
    logits = 3 * np.random.default_rng(count).normal(size=(count, 8))
    found = values(evaluate(OutputDistribution(), {"test": logits}))["nuclear_norm"]
    p = softmax(logits.astype(np.float32).astype(np.float64), axis=1)
    assert found == pytest.approx(np.linalg.norm(p, "nuc") / math.sqrt(min(count, 8) * count), rel=EXACT)


def test_nuclear_norm_of_very_many_classes_is_undefined() -> None:
    found = evaluate(OutputDistribution(), {"test": np.zeros((2, 5000))})
    assert found["nuclear_norm"].status == "undefined: the nuclear norm of 5000 classes needs a square matrix of them"
    assert found["mano"].value == pytest.approx(1 / 5000)


def test_an_offset_of_the_logits_costs_no_digits() -> None:
    """Multiples of 1/8 are exact in float32 beside 1e6."""
    rng = np.random.default_rng(2)
    logits, labels = rng.integers(-40, 40, (60, 3)) / 8, rng.integers(0, 3, 60)
    for measure in MEASURES:
        plain, far = (
            values(evaluate(measure(split="test"), {"test": (logits + offset, labels)})) for offset in (0.0, 1e6)
        )
        for name in plain:
            if name == "output_energy":
                assert far[name] == pytest.approx(plain[name] - 1e6, abs=1e-9)
            else:
                # The mean of energies of 1e6 has 1e-10 in float64.
                assert far[name] == pytest.approx(plain[name], rel=1e-8, abs=1e-9, nan_ok=True), name


def test_scale_of_the_logits() -> None:
    rng = np.random.default_rng(4)
    logits = rng.normal(size=(50, 3)).astype(np.float32)
    one, four = ({"train": (s * logits, logits.argmax(1)), "test": s * logits} for s in (1, 4))
    margins, scaled = (values(evaluate(OutputMargin(), stored)) for stored in (one, four))
    for name, value in margins.items():
        assert scaled[name] == pytest.approx(value * (1 / 16 if name.endswith("inverse_squared") else 4), rel=EXACT)
    energy = values(evaluate(OutputConfidence(), one))["output_energy"]
    assert values(evaluate(OutputConfidence(temperature=4.0), four))["output_energy"] == pytest.approx(4 * energy)


def test_losses_of_certain_outputs_keep_their_digits() -> None:
    found = values(evaluate(Calibration(), {"test": (np.array([[0.0, 50.0]] * 2), np.array([1, 1]))}))
    assert found["negative_log_likelihood"] == pytest.approx(math.exp(-50), rel=1e-9)


# No value -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("measure", [OutputMargin(split="test"), Calibration()], ids=str)
def test_measures_with_labels_need_some(measure: OutputMeasure) -> None:
    logits = 3 * np.eye(3)
    for stored, reason in (
        ((logits, np.array([-1, -1, -1])), "no output has a label"),
        (logits, "the test data have no targets"),
    ):
        assert {outcome.status for outcome in evaluate(measure, {"test": stored}).values()} == {f"undefined: {reason}"}


@pytest.mark.parametrize("measure", [kind(split="test") for kind in MEASURES], ids=str)
def test_other_outputs_have_no_value(measure: OutputMeasure) -> None:
    regression = np.ones((4, 3)), np.ones((4, 3))
    probabilities = np.full((4, 2), 0.5), np.zeros(4, dtype=np.int64)
    single = np.ones((4, 1)), np.zeros(4, dtype=np.int64)
    broken = np.full((4, 2), np.nan), np.zeros(4, dtype=np.int64)
    for stored, part in (
        (regression, "no logits"),
        (probabilities, "the outputs are probabilities"),
        (single, "not one per class"),
        (broken, "NaN or infinite outputs"),
    ):
        for name, outcome in evaluate(measure, {"test": stored}).items():
            assert math.isnan(float(outcome.value)), name
            assert outcome.status.startswith("undefined: "), name
            assert part in outcome.status, name


def test_a_single_input_has_no_error() -> None:
    found = evaluate(OutputConfidence(), {"test": np.zeros((1, 2))})
    assert found["average_confidence"] == Outcome(0.5, "ok")
    assert found["average_confidence_error"].status == (
        "undefined: a standard error over inputs needs at least two inputs, got 1"
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: OutputMargin(split="eval"), "OutputMargin: split='eval' is unknown"),  # type: ignore[arg-type]
        (lambda: OutputMargin(size=2), "OutputMargin: size must be an integer ≥ 10, got 2"),
        (lambda: OutputConfidence(temperature=math.inf), "temperature must be a positive number, got inf"),
        (lambda: Calibration(bins=0), "Calibration: bins must be an integer ≥ 1, got 0"),
        (lambda: OutputDistribution(order=True), "OutputDistribution: order must be a positive number, got True"),
        (lambda: OutputDistribution(normalization="tailor"), "'tailor' is unknown .did you mean 'taylor'"),
        (lambda: OutputDistribution(centered=1), "centered must be true or false, got 1"),  # type: ignore[arg-type]
    ],
)
def test_options_are_checked(make: Any, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        make()
