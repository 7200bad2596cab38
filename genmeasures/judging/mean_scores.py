"""Mean scores over tasks with bootstrap intervals."""

from __future__ import annotations

import numpy as np
import pandas as pd

from genmeasures.errors import DataError, OptionError
from genmeasures.interfaces import is_count
from genmeasures.judging.hparam_grid import as_numbers
from genmeasures.judging.resampling import resample_counts


def score_table(
    scores: pd.DataFrame,
    *,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int | np.random.Generator = 0,
) -> pd.DataFrame:
    """Mean score over tasks with a percentile bootstrap interval over tasks.

    Args:
        scores: float64 (measures, tasks), 100 × :func:`pgdl_score`; NaN where it is undefined.
        confidence: Confidence level, between 0 and 1.
        resamples: Number of bootstrap resamples over tasks, shared by all measures.
        seed: Seed of the resamples, or a random number generator.

    Returns:
        ``scores`` with the columns ``mean``, ``low`` and ``high`` added, float64 (measures, tasks + 3). All three are
        NaN for a measure without a score on some task, because its mean is not comparable. ``low`` and ``high`` are
        NaN for a single task.

    Raises:
        OptionError: An option is out of range.
        DataError: There is no task, a score is infinite or not numeric, or a task has the name of an added column.

    Source: Efron, Nonparametric standard errors and confidence intervals (1981).

    Example:
        >>> scores = pd.DataFrame({"task1": [10.0], "task2": [20.0]}, index=["roughness"])
        >>> score_table(scores).loc["roughness"].tolist()
        [10.0, 20.0, 15.0, 10.0, 20.0]
    """
    if not 0 < confidence < 1:
        raise OptionError(f"score_table: confidence must be between 0 and 1, got {confidence!r}")
    if not is_count(resamples):
        raise OptionError(f"score_table: resamples must be a positive integer, got {resamples!r}")
    reserved = [name for name in ("mean", "low", "high") if name in scores.columns]
    if reserved:
        raise DataError(f"score_table: {reserved[0]!r} is the name of an added column: rename the task")
    if scores.shape[1] == 0:
        raise DataError("score_table: scores must have at least 1 column, one per task, got 0")
    values = as_numbers("scores", scores)
    if np.isinf(values).any():
        raise DataError(f"score_table: scores must be finite or NaN, got {int(np.isinf(values).sum())} infinite values")
    tasks = values.shape[1]
    bounds = np.full((2, len(values)), np.nan)
    if tasks > 1:
        counts = resample_counts(tasks, resamples, np.random.default_rng(seed))
        bounds = np.quantile(counts @ values.T / tasks, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    return scores.assign(mean=values.mean(axis=1), low=bounds[0], high=bounds[1])
