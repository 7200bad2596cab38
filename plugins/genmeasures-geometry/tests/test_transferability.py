"""Transferability: published values, brute force, scikit-learn, and limits."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from genmeasures_geometry import (
    LabeledMoments,
    Moments,
    h_score,
    leep,
    log_me,
    log_me_regression,
    nce,
    shrinkage,
    shrunk_h_score,
)
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.stats import entropy
from sklearn.covariance import LedoitWolf
from sklearn.datasets import load_iris
from sklearn.linear_model import BayesianRidge, LinearRegression
from sklearn.metrics import mutual_info_score
from torch import Tensor

from genmeasures.plugin import Undefined

IRIS_H_SCORE, IRIS_LOG_ME = 1.177842480406727, -0.16006022033609904
"""Published values of the regularized H-score and of LogME on the iris data of scikit-learn."""
SINGLE = 5e-7
"""Relative difference of the published values of LogME that arithmetic in float32 explains."""
OPTIMUM = 1e-9
"""Relative difference allowed between two optimizers: the evidence is flat at its maximum."""

Array = NDArray[np.float64]
Blobs = tuple[Array, NDArray[np.int64]]


def evidence(x: Array, y: Array) -> float:
    """Maximum evidence over n by its definition, with the full matrices, from several starts."""
    n, d = x.shape

    def negative(logs: Array) -> float:
        alpha, beta = np.exp(logs)
        a = alpha * np.eye(d) + beta * x.T @ x
        m = beta * np.linalg.solve(a, x.T @ y)
        fit = beta / 2 * ((x @ m - y) ** 2).sum() + alpha / 2 * m @ m
        log = n * np.log(beta) + d * np.log(alpha) - n * np.log(2 * np.pi) - np.linalg.slogdet(a)[1]
        return float(fit - log / 2) / n

    options = {"xatol": 1e-10, "fatol": 1e-14, "maxiter": 10_000}
    starts = itertools.product((-5, 0, 5), (-3, 3))
    return -min(minimize(negative, start, method="Nelder-Mead", options=options).fun for start in starts)


def indicators(y: NDArray[np.int64]) -> list[Array]:
    return [(y == c).astype(float) for c in np.unique(y)]


def iris(dtype: torch.dtype = torch.float64) -> LabeledMoments:
    x, y = load_iris(return_X_y=True)
    return LabeledMoments.of(torch.tensor(x, dtype=dtype), torch.tensor(y))


# LogME


def test_log_me_of_iris() -> None:
    x, y = load_iris(return_X_y=True)
    expected = np.mean([evidence(x, one) for one in indicators(y)])
    assert log_me(iris()) == pytest.approx(expected, rel=OPTIMUM)
    assert log_me(iris()) == pytest.approx(IRIS_LOG_ME, rel=SINGLE)


def test_log_me_is_the_maximum_evidence(blobs: Blobs, tensors: tuple[Tensor, Tensor]) -> None:
    expected = np.mean([evidence(blobs[0], one) for one in indicators(blobs[1])])
    assert log_me(LabeledMoments.of(*tensors)) == pytest.approx(expected, rel=OPTIMUM)


@pytest.mark.parametrize("noise", [0.1, 1.0, 30.0])
def test_log_me_of_continuous_targets(blobs: Blobs, noise: float) -> None:
    x = blobs[0]
    rng = np.random.default_rng(1)
    y = x @ rng.standard_normal((6, 2)) + noise * rng.standard_normal((120, 2)) + 0.5
    expected = np.mean([evidence(x, one) for one in y.T])
    assert log_me_regression(torch.tensor(x), torch.tensor(y)) == pytest.approx(expected, rel=OPTIMUM)
    first = log_me_regression(torch.tensor(x), torch.tensor(y[:, 0]))
    assert first == pytest.approx(evidence(x, y[:, 0]), rel=OPTIMUM)


def test_log_me_against_scikit_learn(blobs: Blobs) -> None:
    """BayesianRidge maximizes the same evidence, with flat priors of the precisions."""
    x = blobs[0]
    y = x[:, 0] + np.random.default_rng(2).standard_normal(120)
    options = {"fit_intercept": False, "compute_score": True, "max_iter": 3000, "tol": 1e-12}
    priors = dict.fromkeys(("alpha_1", "alpha_2", "lambda_1", "lambda_2"), 0.0)
    scores = BayesianRidge(**options, **priors).fit(x, y).scores_
    found = log_me_regression(torch.tensor(x), torch.tensor(y))
    assert found == pytest.approx(scores[-1] / 120, rel=1e-6)


def test_log_me_of_more_dimensions_than_vectors(blobs: Blobs) -> None:
    x = np.random.default_rng(3).standard_normal((20, 25)) / np.arange(1, 26) ** 2  # the last say little of the labels
    y = blobs[1][:20]
    expected = np.mean([evidence(x, one) for one in indicators(y)])
    assert log_me(LabeledMoments.of(torch.tensor(x), torch.tensor(y))) == pytest.approx(expected, rel=1e-6)


def test_log_me_of_useless_features(tensors: tuple[Tensor, Tensor]) -> None:
    """The precision of the weights diverges; the evidence does not."""
    noise = torch.randn(120, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    y = tensors[1].double()
    residual = y - noise @ torch.linalg.lstsq(noise, y).solution
    y = residual - noise @ torch.linalg.lstsq(noise, residual).solution  # orthogonal to the features
    null = -0.5 * (np.log(2 * np.pi * float(y @ y) / 120) + 1)
    assert log_me_regression(noise, y) == pytest.approx(null, rel=1e-9)


def test_log_me_is_scale_invariant_and_streams(tensors: tuple[Tensor, Tensor]) -> None:
    x, y = tensors
    moments = LabeledMoments()
    for rows, labels in zip(x.flip(0).split(7), y.flip(0).split(7), strict=True):
        moments.add(1024 * rows, 5 - labels)
    assert log_me(moments) == pytest.approx(log_me(LabeledMoments.of(x, y)), rel=OPTIMUM)


def test_log_me_far_from_the_origin(blobs: Blobs) -> None:
    """An offset of 1e6 is an intercept with almost no prior: the digits of the rest must stay."""
    x, y = blobs
    found = log_me(LabeledMoments.of(torch.tensor(x + 1e6), torch.tensor(y)))
    basis, _ = np.linalg.qr(np.concatenate([(x + 1e6).mean(0)[None], np.eye(6)]).T)
    expected = np.mean([evidence((x + 1e6) @ basis, one) for one in indicators(y)])
    assert found == pytest.approx(expected, rel=1e-5)  # the brute force itself loses digits there


def test_features_that_fit_exactly_have_no_evidence() -> None:
    x = torch.randn(30, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with pytest.raises(Undefined, match="fit the labels exactly"):
        log_me_regression(x, x @ torch.tensor([1.0, 2.0, 3.0]).double())
    labels = torch.arange(30) % 2
    with pytest.raises(Undefined, match="fit the labels exactly"):
        log_me(LabeledMoments.of(torch.nn.functional.one_hot(labels).double(), labels))


def test_targets_without_a_value() -> None:
    for targets in (torch.zeros(5), torch.full((5,), torch.nan)):
        with pytest.raises(Undefined, match="targets are zero or not finite"):
            log_me_regression(torch.rand(5, 2), targets)


# H-score


def test_h_score_is_that_of_the_matrices(blobs: Blobs, tensors: tuple[Tensor, Tensor]) -> None:
    x, y = blobs
    conditional = np.stack([x[y == c].mean(0) for c in range(4)])[y]
    expected = np.trace(np.linalg.pinv(np.cov(x.T)) @ np.cov(conditional.T))
    assert h_score(LabeledMoments.of(*tensors)) == pytest.approx(expected, rel=1e-10)


def test_h_score_is_the_explained_variance_of_a_linear_model() -> None:
    """For two classes, R² of the regression of the label."""
    x, y = load_iris(return_X_y=True)
    x, y = x[50:], y[50:]
    expected = LinearRegression().fit(x, y).score(x, y)
    assert h_score(LabeledMoments.of(torch.tensor(x), torch.tensor(y))) == pytest.approx(expected, rel=1e-9)


def test_h_score_at_its_bounds() -> None:
    labels = torch.arange(40) % 4
    collapsed = torch.nn.functional.one_hot(labels).double() @ torch.rand(4, 6, dtype=torch.float64) + 1e3
    assert h_score(LabeledMoments.of(collapsed, labels)) == pytest.approx(3, rel=1e-9)
    symmetric = torch.cat([torch.eye(3), -torch.eye(3)]).double()
    assert h_score(LabeledMoments.of(symmetric, torch.arange(6) % 3)) == pytest.approx(0, abs=1e-15)


def test_h_score_of_too_few_vectors_is_no_score(tensors: tuple[Tensor, Tensor]) -> None:
    """Independent vectors have the score of a perfect separation, whatever their labels."""
    x = torch.randn(10, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with pytest.raises(Undefined, match="10 vectors that span 9 dimensions are too few"):
        h_score(LabeledMoments.of(x, torch.arange(10) % 2))
    assert shrunk_h_score(LabeledMoments.of(x, torch.arange(10) % 2)) < 0.9


def test_shrunk_h_score_of_iris() -> None:
    """The published value is that of features in float32."""
    assert shrunk_h_score(iris(torch.float32)) == pytest.approx(IRIS_H_SCORE, rel=1e-10)
    assert shrunk_h_score(iris()) == pytest.approx(IRIS_H_SCORE, rel=1e-7)


@pytest.mark.parametrize(("n", "k"), [(120, 6), (30, 40), (25, 2)])
def test_shrinkage_is_that_of_scikit_learn(n: int, k: int) -> None:
    x = np.random.default_rng(n).standard_normal((n, k)) * np.arange(1, k + 1) + 3
    fitted = LedoitWolf().fit(x)
    assert 0 < fitted.shrinkage_ < 1
    assert shrinkage(Moments.of(torch.tensor(x))) == pytest.approx(fitted.shrinkage_, rel=1e-10)
    y = np.arange(n) % 3
    conditional = np.stack([x[y == c].mean(0) for c in range(3)])[y]
    within = (1 - fitted.shrinkage_) * np.cov(conditional.T)
    expected = np.trace(np.linalg.solve(fitted.covariance_, within))
    assert shrunk_h_score(LabeledMoments.of(torch.tensor(x), torch.tensor(y))) == pytest.approx(expected, rel=1e-9)


def test_shrinkage_of_a_multiple_of_the_identity() -> None:
    """A single dimension is one, and is not shrunk: scikit-learn agrees."""
    x = torch.tensor([[0.0], [1.0], [5.0]])
    assert shrinkage(Moments.of(x)) == LedoitWolf().fit(x.numpy()).shrinkage_ == 0
    corners = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    assert shrinkage(Moments.of(corners)) == 0


def test_one_class_has_no_score(tensors: tuple[Tensor, Tensor]) -> None:
    moments = LabeledMoments.of(tensors[0], tensors[1] * 0)
    constant = LabeledMoments.of(torch.full((20, 3), 0.37), torch.arange(20) % 2)
    for score in (log_me, h_score, shrunk_h_score):
        with pytest.raises(Undefined, match="at least 2 classes"):
            score(moments)
        with pytest.raises(Undefined, match="constant features"):
            score(constant)


# LEEP and NCE


def test_leep_by_its_definition(blobs: Blobs) -> None:
    y = blobs[1]
    theta = np.random.default_rng(4).dirichlet(np.ones(3), 120)
    total = 0.0
    for i in range(120):
        expected = 0.0
        for z in range(3):
            joint = sum(theta[j, z] for j in range(120) if y[j] == y[i]) / 120
            expected += joint / (theta[:, z].sum() / 120) * theta[i, z]
        total += np.log(expected)
    assert leep(torch.tensor(theta), torch.tensor(y) * 7 - 3) == pytest.approx(total / 120, rel=1e-10)


@pytest.mark.parametrize("classes", [2, 5, 10])
def test_leep_at_its_limits(classes: int) -> None:
    labels = torch.arange(10 * classes) % classes
    perfect = torch.nn.functional.one_hot((labels + 1) % classes, classes + 2)  # some classes of the source never occur
    assert leep(perfect, labels) == 0
    random = torch.full((len(labels), 7), 1 / 7)
    assert leep(random, labels) == pytest.approx(np.log(1 / classes), rel=1e-6)


def test_leep_of_certain_outputs_is_nce(blobs: Blobs) -> None:
    y = torch.tensor(blobs[1])
    z = torch.tensor(np.random.default_rng(5).integers(3, size=120))
    assert leep(torch.nn.functional.one_hot(z), y) == pytest.approx(nce(z, y), rel=1e-12)


def test_nce_against_scikit_learn(blobs: Blobs) -> None:
    """−H(Y|Z) = I(Y; Z) − H(Y)."""
    y = blobs[1]
    z = (y + np.random.default_rng(6).integers(2, size=120)) % 5
    expected = mutual_info_score(y, z) - entropy(np.bincount(y))
    assert nce(torch.tensor(z) - 9, torch.tensor(y)) == pytest.approx(expected, rel=1e-10)
    assert nce(torch.tensor(y), torch.tensor(z * 0)) == 0


def test_what_is_no_distribution() -> None:
    labels = torch.tensor([0, 1])
    for theta in (torch.tensor([[2.0, -1.0], [0.5, 0.5]]), torch.ones(2, 2), torch.full((2, 2), torch.nan)):
        with pytest.raises(Undefined, match="apply a softmax to logits"):
            leep(theta, labels)
    with pytest.raises(Undefined):
        leep(torch.zeros(0, 2), labels[:0])
    with pytest.raises(Undefined, match="no inputs"):
        nce(labels[:0], labels[:0])
