"""Comparisons of measures with targets: one per row of the table of judge."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from genmeasures.judging.coefficients import agreement, coefficients, remarks
from genmeasures.judging.correlation import MIN_MODELS, is_constant
from genmeasures.judging.grid import grid_scores
from genmeasures.judging.ranks import Floats
from genmeasures.judging.regression import rank_of, residuals
from genmeasures.judging.resampling import Draws
from genmeasures.results.schema import GAP, judged_variables

_ROWS = 128
"""Number of measures that are resampled at once."""
_NAMED = 5
"""Number of excluded models that a row names."""


@dataclass(frozen=True, eq=False)
class Comparison:
    """One measure, of one layer or of the whole model, against one target."""

    measure: str
    layer: int | None
    target: str
    expected: int
    """Sign of the correlation that the source of the measure states; 0 for none."""
    used: NDArray[np.bool_]
    """(models,): models with a finite value, target and covariates."""
    x: Floats
    """(n,): the measure of the used models."""
    y: Floats
    """(n,): the target of the used models."""
    undefined: str
    """Why there is no correlation; "" where there is one."""

    def counts(self, names: NDArray[np.str_]) -> dict[str, Any]:
        """The columns of the table that name the comparison and count its models (models,)."""
        excluded = names[~self.used]
        return {
            "measure": self.measure,
            "layer": self.layer,
            "against": self.target,
            "n": int(self.used.sum()),
            "excluded": len(excluded),
            "excluded_models": ", ".join(excluded[:_NAMED]) + (", …" if len(excluded) > _NAMED else ""),
            "expected": self.expected,
            "status": f"undefined: {self.undefined}",
        }


def comparisons(ds: xr.Dataset, targets: Mapping[str, Floats], covariates: Floats | None) -> list[Comparison]:
    """All comparisons of the measures of a result with targets.

    Args:
        ds: A result, aggregated or not.
        targets: float64 of shape (models,) by name.
        covariates: float64 of shape (models, q), or None.

    Returns:
        One comparison for each measure, layer and target.

    Example:
        >>> ds = xr.Dataset({"m": ("model", [1.0, 2.0, np.nan]), "m_status": ("model", ["ok", "ok", "undefined: x"])})
        >>> [comparison] = comparisons(ds, {"test_accuracy": np.array([0.7, 0.8, 0.9])}, None)
        >>> comparison.undefined
        '2 models with a value and a target, at least 3 are needed'
    """
    rows = []
    for measure, layer, values in _measured(ds):
        for target, truth in targets.items():
            used = np.isfinite(values) & np.isfinite(truth)
            if covariates is not None:
                used &= np.isfinite(covariates).all(axis=1)
            x, y = values[used], truth[used]
            undefined = _undefined(x, y, measure, target, None if covariates is None else covariates[used])
            rows.append(Comparison(measure, layer, target, _expected(ds, measure, target), used, x, y, undefined))
    return rows


def _measured(ds: xr.Dataset) -> Iterator[tuple[str, int | None, Floats]]:
    """Measure, layer and values (models,) of all judged variables."""
    for name in judged_variables(ds):
        if "layer" not in ds[name].dims:
            yield name, None, ds[name].values.astype(np.float64)
            continue
        values = ds[name].transpose("layer", "model").values.astype(np.float64)
        for index, row in zip(ds[name]["layer"].values, values, strict=True):
            yield name, int(index), row


def _expected(ds: xr.Dataset, measure: str, target: str) -> int:
    """Expected sign of the correlation of a measure with a target; 0 where none is stated."""
    kind = {GAP: "gap", f"test_{ds.attrs.get('metric', 'accuracy')}": "accuracy"}.get(target)
    return 0 if kind is None else int(ds[measure].attrs.get(f"expected_{kind}", 0))


def _undefined(x: Floats, y: Floats, measure: str, target: str, covariates: Floats | None) -> str:
    """Why x and y have no correlation; "" where they have one."""
    if len(x) < MIN_MODELS:
        return f"{len(x)} models with a value and a target, at least {MIN_MODELS} are needed"
    for name, values in ((measure, x), (target, y)):
        if is_constant(values):
            return f"{name} is the same for all models"
    if covariates is None:
        return ""
    rank = rank_of(covariates)
    if len(x) - rank < 2:
        return f"{len(x)} models are too few for the {rank - 1} degrees of freedom of the covariates"
    for name, left in zip((measure, target), residuals(np.stack([x, y]), covariates), strict=True):
        if np.isnan(left).any():
            return f"the covariates explain {name} completely"
    return ""


def correlation_columns(
    members: Sequence[Comparison], draws: Draws, confidence: float
) -> Iterator[tuple[Comparison, dict[str, Any]]]:
    """Coefficients, intervals and p-values of defined comparisons that use the same models.

    Args:
        members: Comparisons with the same ``used``.
        draws: Resamples and permutations of their models.
        confidence: Confidence level of the intervals.

    Yields:
        A comparison and its columns: :data:`~genmeasures.judging.coefficients.NUMBERS`, ``status`` and ``agrees``.

    Example:
        >>> from genmeasures.judging.resampling import draw
        >>> values = np.arange(10.0)
        >>> used = np.ones(10, dtype=bool)
        >>> comparison = Comparison("m", None, "test_accuracy", 1, used, values, values, "")
        >>> [(_, columns)] = correlation_columns([comparison], draw(10, resamples=50, seed=0), 0.95)
        >>> columns["pearson"], columns["agrees"]
        (1.0, 'yes')
    """
    targets = {member.target: member.y for member in members}
    measures = {member.x.tobytes(): member.x for member in members}
    index_of_target = {target: index for index, target in enumerate(targets)}
    keys = list(measures)
    for start in range(0, len(keys), _ROWS):
        batch = {key: index for index, key in enumerate(keys[start : start + _ROWS])}
        columns = coefficients(
            np.stack([measures[key] for key in batch]), np.stack(list(targets.values())), draws, confidence
        )
        for member in members:
            row = batch.get(member.x.tobytes())
            if row is not None:
                numbers = {name: float(of[row, index_of_target[member.target]]) for name, of in columns.items()}
                notes = remarks(numbers, draws)
                status = f"note: {'; '.join(notes)}" if notes else "ok"
                yield member, {**numbers, "status": status, "agrees": agreement(member.expected, numbers, confidence)}


def grid_columns(
    members: Sequence[Comparison], hparams: pd.DataFrame, test_size: int | None, draws: Draws, confidence: float
) -> Iterator[tuple[Comparison, dict[str, float | str]]]:
    """Scores on the grid of hyperparameters of comparisons with the gap that use the same models.

    Args:
        members: Comparisons with the same ``used``, whose target is the generalization gap.
        hparams: (models, k) values of k hyperparameters.
        test_size: Number of test samples behind the gaps; None where unknown.
        draws: Resamples and permutations of the models used.
        confidence: Confidence level of the interval.

    Yields:
        A comparison and its columns of :func:`~genmeasures.judging.grid.grid_scores`.

    Example:
        >>> from genmeasures.judging.resampling import draw
        >>> hparams = pd.DataFrame(list(np.ndindex(2, 2, 2)), columns=["width", "depth", "lr"])
        >>> gap = np.arange(8) / 100
        >>> used = np.ones(8, dtype=bool)
        >>> comparison = Comparison("m", None, "generalization_gap", -1, used, -gap, gap, "")
        >>> [(_, columns)] = grid_columns([comparison], hparams, None, draw(8, resamples=50, seed=0), 0.95)
        >>> columns["granulated_kendall"]  # the measure is negated, because it is expected to decrease
        1.0
    """
    if members:
        # The scores assume that a measure grows with the gap.
        measures = np.stack([-member.x if member.expected < 0 else member.x for member in members])
        scores = grid_scores(measures, members[0].y, hparams[members[0].used], test_size, draws, confidence)
        yield from zip(members, scores, strict=True)
