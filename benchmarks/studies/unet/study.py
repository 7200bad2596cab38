"""What the tables and figures of the study share: its result files, and correlations with their intervals."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
import xarray as xr
from analysis import Interval, percentile_interval
from numpy.typing import NDArray

import genmeasures
from genmeasures.aggregators import Frobenius, MeanWeight
from genmeasures.errors import ResultError
from genmeasures.interfaces import Aggregator
from genmeasures.judging import dummies, group_codes, partial_pearson, pearson, resample_counts, spearman
from genmeasures.results import load

Floats: TypeAlias = NDArray[np.float64]

EXTRACTORS: Mapping[str, str] = {"whole_tensor": "whole tensor", "receptive_field": "receptive field"}
"""File names and readable names, in the order of the paper's Table 1."""
MEASURES: Mapping[str, str] = {
    "davies_bouldin": "Davies–Bouldin",
    "roughness": "roughness",
    "roughness_projected": "roughness, projected",
    "confidence": "confidence",
    "confidence_unweighted": "confidence, unweighted",
    "confidence_published": "confidence, published",
    "confidence_rank": "confidence, rank",
    "confidence_shift": "confidence, shift",
}
MAIN = ("davies_bouldin", "roughness", "roughness_projected", "confidence", "confidence_published")
"""The measures that figures show: the paper's, in each reading of it."""
READINGS: Mapping[str, Aggregator] = {
    "Σwm/Σw": Frobenius(),
    "Σwm/L": Frobenius(normalize="layers"),
    "Σ(m/w)/Σ(1/w)": Frobenius(power=-1),
    "Σ(m/w)/L": Frobenius(normalize="layers", power=-1),
}
"""Averages over the L layers with the Frobenius norms w of their weights, and how tables call them; the first is the
default."""
DEFAULT = next(iter(READINGS))
PAPER: Mapping[tuple[str, str], float] = {
    ("whole_tensor", "davies_bouldin"): -0.600,
    ("whole_tensor", "roughness"): -0.629,
    ("whole_tensor", "confidence"): -0.651,
    ("receptive_field", "davies_bouldin"): -0.704,
    ("receptive_field", "roughness"): -0.783,
    ("receptive_field", "confidence"): -0.883,
}
"""Pearson correlations with the test IoU, Rajagopal et al. 2021, Table 1."""
FAMILIES: Mapping[str, str] = {"vgg": "with fully connected layers", "nin": "convolutions alone"}
"""Networks in the format of PGDL: names in files, and readable ones."""
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
    groups: tuple[str, ...]
    """Coordinates that tell apart what is trained differently, such as "objective" and "train_cases"."""
    targets: tuple[str, ...]
    """Coordinates that measures are judged by, the main one first."""

    @property
    def any(self) -> xr.Dataset:
        """A result of which coordinates of models are read: they are the same in all."""
        return next(iter(self.results.values()))

    @property
    def extractors(self) -> dict[str, str]:
        """The extractors that there are results of, and their readable names."""
        return {name: readable for name, readable in EXTRACTORS.items() if name in self.results}

    @property
    def layers(self) -> list[str]:
        """Names of the layers, in the order of the forward pass."""
        return [str(name).removesuffix(".conv") for name in self.any["layer_name"].values[0]]

    @property
    def measures(self) -> list[tuple[str, str]]:
        """Extractors and measures, in the order of the tables."""
        return [(name, measure) for name, ds in self.results.items() for measure in MEASURES if measure in ds]

    def labels(self, group: str) -> NDArray[np.str_]:
        """(models,): the group of each model, as text."""
        return np.array([group_name(group, value) for value in self.any[group].values])

    @property
    def runs(self) -> NDArray[np.str_]:
        """(models,): the training run of each model."""
        parts = [*(self.labels(group) for group in self.groups), self.any["seed"].values.astype(int).astype(str)]
        return np.array([", ".join(words) for words in zip(*parts, strict=True)])

    @property
    def seeds(self) -> list[int]:
        return sorted({int(seed) for seed in self.any["seed"].values})

    @property
    def known(self) -> Floats:
        """float64 (models, q): what is known of a model without a measure, log epoch and dummies of the groups."""
        epoch = np.log(self.values("epoch"))
        return np.column_stack([epoch, *(dummies(self.labels(group)) for group in self.groups)])

    def values(self, coordinate: str) -> Floats:
        """float64 (models,)."""
        return np.asarray(self.any[coordinate].values, dtype=np.float64)

    def reduced(self, extractor: str, measure: str, reading: str = DEFAULT, inner: bool = False) -> Floats:
        """float64 (models,): a measure averaged over the layers.

        ``inner``: without the first and the last layer, as the paper does (layers 2 to 10 of 11).
        """
        return np.asarray(self.averages[extractor, reading, inner][measure].values, dtype=np.float64)

    def weights(self, power: int, inner: bool = False) -> Floats:
        """float64 (models,): the mean over layers of the norms of the weights, to this power."""
        ds = self.any.isel(layer=slice(1, -1)) if inner else self.any
        measure = next(measure for measure in MEASURES if measure in ds)
        return np.asarray(genmeasures.aggregate(ds, MeanWeight(power))[measure].values, dtype=np.float64)

    def by_layer(self, extractor: str, measure: str) -> Floats:
        """float64 (models, layers)."""
        return np.asarray(self.results[extractor][measure].transpose("model", "layer").values, dtype=np.float64)

    def of(self, models: Sequence[str] | NDArray[np.object_]) -> Study:
        """The study of these models alone."""
        chosen = {name: ds.sel(model=list(models)) for name, ds in self.results.items()}
        return Study(chosen, averages(chosen), self.groups, self.targets)


def column(measure: str) -> str:
    """The column of the paper's Table 1 that a measure is a reading of."""
    return measure if measure == "davies_bouldin" else measure.partition("_")[0]


def group_name(group: str, value: object) -> str:
    """How a value of the coordinate ``group`` is called in tables and legends."""
    return str(value) if group == "objective" else f"{int(float(str(value)))} cases"


def read(folder: Path, prefix: str, groups: tuple[str, ...], targets: tuple[str, ...]) -> Study:
    """The study in ``<prefix>receptive_field.nc`` and ``<prefix>whole_tensor.nc``.

    With a prefix, one of them may be missing. Raises ResultError for files that cannot be read, or hold different
    models.
    """
    paths = {name: folder / f"{prefix}{name}.nc" for name in EXTRACTORS}
    results = {name: load(path) for name, path in paths.items() if not prefix or path.is_file()}
    first = next(iter(results.values()))
    if any(set(first["model"].values) != set(ds["model"].values) for ds in results.values()):
        raise ResultError(f"{folder}: the results {prefix}*.nc of the two extractors have different models")
    results = {name: ds.sel(model=first["model"].values) for name, ds in results.items()}
    for name in (*groups, "epoch", "seed", *targets):
        if name not in first.coords:
            raise ResultError(f"{paths[next(iter(results))]} has no coordinate {name!r}: no result of this study")
    return Study(results, averages(results), groups, targets)


def averages(results: Mapping[str, xr.Dataset]) -> dict[tuple[str, str, bool], xr.Dataset]:
    """By extractor, reading, and whether the first and the last layer are left out: dims (model,)."""
    return {
        (name, reading, inner): genmeasures.aggregate(ds.isel(layer=slice(1, -1)) if inner else ds, aggregator)
        for name, ds in results.items()
        for reading, aggregator in READINGS.items()
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
