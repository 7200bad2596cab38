"""Published scores of the PGDL competition, for comparison."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import pandas as pd

_TASKS = (1, 2, 4, 5, 6, 7, 8, 9)
_PUBLISHED: dict[str, tuple[float, ...]] = {
    "DB × label-wise mixup (winner)": (25.22, 22.19, 31.79, 15.92, 43.99, 12.59, 9.24, 25.86),
    "mixup margin": (1.11, 47.33, 43.22, 34.57, 11.46, 21.98, 1.48, 20.78),
    "augment margin": (15.66, 48.34, 47.22, 22.82, 8.67, 11.97, 1.28, 15.25),
    "kV-GN-Margin, first layer": (18.17, 45.24, 30.78, 15.66, 4.48, 3.91, 0.58, 21.85),
    "distance from initialization (baseline)": (5.13, 4.71, 2.78, 1.26),
    "Jacobian norm (baseline)": (0.94, 3.15, 1.09, 7.30),
    "sharpness (baseline)": (0.0, 0.0, 0.85, 0.79),
}
"""100 × the official score on tasks 1, 2, 4, 5, 6, 7, 8 and 9; baselines have only the first four."""

_OFFICIAL = re.compile(r"task(1_v4|2_v1|[456789])")


def published_scores(tasks: Sequence[str]) -> pd.DataFrame:
    """Published scores of the competition on some of its tasks.

    Args:
        tasks: Names of task folders. The official ones are task1_v4, task2_v1 and task4 to task9.

    Returns:
        float64 (methods, tasks), 100 × the official score; NaN for a task that is not an official one. Methods
        without a score on any of the tasks are left out.

    Example:
        >>> published_scores(["task4"]).loc["mixup margin, as published", "task4"].item()
        43.22
    """
    columns = {}
    for name in tasks:
        match = _OFFICIAL.fullmatch(name)
        index = _TASKS.index(int(match[1].partition("_")[0])) if match else None
        columns[name] = [
            scores[index] if index is not None and index < len(scores) else np.nan for scores in _PUBLISHED.values()
        ]
    frame = pd.DataFrame(columns, index=pd.Index([f"{name}, as published" for name in _PUBLISHED], name="measure"))
    return frame.astype("float64").dropna(how="all")
