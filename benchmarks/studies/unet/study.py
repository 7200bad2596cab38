"""What the tables and figures of the study share: its result files, and correlations with their intervals."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
import xarray as xr
from analysis import Interval, percentile_interval
from numpy.typing import NDArray

import genmeasures
from genmeasures.errors import ResultError
from genmeasures.judging import group_codes, partial_pearson, pearson, resample_counts, spearman
from genmeasures.results import combine, load

Floats: TypeAlias = NDArray[np.float64]

EXTRACTORS: Mapping[str, str] = {"whole_tensor": "whole tensor", "receptive_field": "receptive field"}
"""File names and readable names, in the order of the paper's Table 1."""
MEASURES: Mapping[str, str] = {
    "davies_bouldin": "Davies–Bouldin",
    "roughness": "roughness",
    "confidence": "confidence",
    "confidence_unweighted": "confidence, unweighted",
}
WEIGHTS: Mapping[str, str] = {"frobenius": "Frobenius", "mean": "equal"}
"""Aggregators that average the layers, and how tables call their weights."""
MAIN = ("davies_bouldin", "roughness", "confidence")
"""The measures of the paper's Table 1."""
PAPER: Mapping[tuple[str, str], float] = {
    ("whole_tensor", "davies_bouldin"): -0.600,
    ("whole_tensor", "roughness"): -0.629,
    ("whole_tensor", "confidence"): -0.651,
    ("receptive_field", "davies_bouldin"): -0.704,
    ("receptive_field", "roughness"): -0.783,
    ("receptive_field", "confidence"): -0.883,
}
"""Pearson correlations with the test IoU, Rajagopal et al. 2021, Table 1."""
TARGETS: Mapping[str, str] = {
    "test_iou": "test IoU",
    "test_r2": "test R²",
    "test_ssim": "test SSIM",
    "generalization_gap": "generalization gap",
}


@dataclass(frozen=True)
class Study:
    """The results of one task: the same models, measured with each extractor."""

    results: Mapping[str, xr.Dataset]
    """By extractor; dims (model, layer)."""
    averages: Mapping[tuple[str, str, bool], xr.Dataset]
    """The same, averaged over layers: see :func:`averages`."""
    group: str
    """Coordinate that tells apart what is trained differently: "objective" or "train_cases"."""
    targets: tuple[str, ...]
    """Coordinates that measures are judged by, the main one first."""

    @property
    def any(self) -> xr.Dataset:
        """A result of which coordinates of models are read: they are the same in all."""
        return next(iter(self.results.values()))

    @property
    def layers(self) -> list[str]:
        """Names of the layers, in the order of the forward pass."""
        return [str(name).removesuffix(".conv") for name in self.any["layer_name"].values[0]]

    @property
    def groups(self) -> list[str]:
        """The values of ``group``, in the order in which they appear, as text."""
        return list(dict.fromkeys(self.labels))

    @property
    def labels(self) -> NDArray[np.str_]:
        """(models,): the group of each model, as text."""
        return np.array([group_name(self.group, value) for value in self.any[self.group].values])

    @property
    def runs(self) -> NDArray[np.str_]:
        """(models,): the training run of each model."""
        return np.array([f"{a}, seed {int(b)}" for a, b in zip(self.labels, self.any["seed"].values, strict=True)])

    @property
    def seeds(self) -> list[int]:
        return sorted({int(seed) for seed in self.any["seed"].values})

    def values(self, coordinate: str) -> Floats:
        """float64 (models,)."""
        return np.asarray(self.any[coordinate].values, dtype=np.float64)

    def reduced(self, extractor: str, measure: str, weights: str = "frobenius", inner: bool = False) -> Floats:
        """float64 (models,): a measure averaged over the layers by the aggregator ``weights``.

        ``inner``: without the first and the last layer, as the paper does (layers 2 to 10 of 11).
        """
        return np.asarray(self.averages[extractor, weights, inner][measure].values, dtype=np.float64)

    def by_layer(self, extractor: str, measure: str) -> Floats:
        """float64 (models, layers)."""
        return np.asarray(self.results[extractor][measure].transpose("model", "layer").values, dtype=np.float64)


def group_name(group: str, value: object) -> str:
    """How a value of the coordinate ``group`` is called in tables and legends."""
    return str(value) if group == "objective" else f"{int(str(value))} cases"


def read(folder: Path, prefix: str, group: str, targets: tuple[str, ...], seeds: bool = False) -> Study:
    """The study in ``<prefix>receptive_field.nc`` and ``<prefix>whole_tensor.nc``.

    With ``seeds``, the models of ``…_seeds.nc`` that are not there yet are joined to them. Raises ResultError for
    files that are missing, cannot be read, or hold different models.
    """
    results: dict[str, xr.Dataset] = {}
    for name in EXTRACTORS:
        ds = load(folder / f"{prefix}{name}.nc")
        if seeds:
            more = load(folder / f"{prefix}{name}_seeds.nc")
            new = ~more["model"].isin(ds["model"]).values
            ds = combine([ds, more.isel(model=new)], ds.attrs)
        results[name] = ds
    first, second = results.values()
    if set(first["model"].values) != set(second["model"].values):
        raise ResultError(f"{folder}: the results {prefix}*.nc of the two extractors have different models")
    results = {name: ds.sel(model=first["model"].values) for name, ds in results.items()}
    for name in (group, "epoch", "seed", *targets):
        if name not in first.coords:
            raise ResultError(
                f"{folder / f'{prefix}whole_tensor.nc'} has no coordinate {name!r}: no result of this study"
            )
    return Study(results, averages(results), group, targets)


def averages(results: Mapping[str, xr.Dataset]) -> dict[tuple[str, str, bool], xr.Dataset]:
    """By extractor, weights of the layers, and whether the first and the last are left out: dims (model,)."""
    return {
        (name, weights, inner): genmeasures.aggregate(ds.isel(layer=slice(1, -1)) if inner else ds, weights)
        for name, ds in results.items()
        for weights in WEIGHTS
        for inner in (False, True)
    }


class Correlation(NamedTuple):
    """Coefficients of n models, with 95 % intervals of Pearson's."""

    n: int
    pearson: float
    models: Interval
    """Models resampled, as by :func:`genmeasures.judge`."""
    runs: Interval
    """Whole training runs resampled."""
    spearman: float


def correlation(x: Floats, y: Floats, runs: NDArray[np.str_]) -> Correlation:
    """Correlations of x and y (models,) where both are finite."""
    used = np.isfinite(x) & np.isfinite(y)
    x, y = x[used], y[used]
    n = int(used.sum())
    coefficient = float(pearson(x, y))
    nothing = Interval(math.nan, math.nan, 0)
    if math.isnan(coefficient):
        return Correlation(n, coefficient, nothing, nothing, math.nan)
    models = percentile_interval(pearson(x, y, _counts(n)))
    return Correlation(
        n, coefficient, models, _over_runs(pearson(x, y, _run_counts(runs[used]))), float(spearman(x, y))
    )


def partial_over_runs(x: Floats, y: Floats, given: Floats, runs: NDArray[np.str_]) -> tuple[float, Interval]:
    """Partial correlation of x and y (models,) given (models, q), where all are finite, and its interval over runs."""
    used = np.isfinite(x) & np.isfinite(y) & np.isfinite(given).all(1)
    x, y, given = x[used], y[used], given[used]
    resampled = partial_pearson(x, y, given, _run_counts(runs[used]))
    return float(partial_pearson(x, y, given)), _over_runs(resampled)


def _over_runs(resampled: Floats) -> Interval:
    return percentile_interval(resampled) if len(resampled) else Interval(math.nan, math.nan, 0)


@functools.lru_cache(maxsize=16)
def _counts(n: int) -> Floats:
    """Resamples of n models, as :func:`genmeasures.judge` draws them."""
    return resample_counts(n, 1000, np.random.default_rng(0))


def _run_counts(runs: NDArray[np.str_]) -> Floats:
    """Resamples of whole runs, likewise; none of a single run."""
    codes = group_codes(runs)
    if codes.max(initial=0) == 0:
        return np.empty((0, len(runs)))
    return resample_counts(len(runs), 1000, np.random.default_rng(0), codes)
