"""What is told of measures on a grid of hyper-parameters, as columns of a table."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pandas as pd

from genmeasures.errors import GenmeasuresError
from genmeasures.judging.correlation import Floats
from genmeasures.judging.pgdl import granulated_kendall, grid_codes, pair_scores, set_scores, worst_sign_error

GRID = ("pgdl", "pgdl_symmetric", "cmi_0", "cmi_1", "cmi_2", "granulated_kendall", "worst_sign_error")
"""Numbers of :func:`grid_scores`: 100 × :func:`pgdl_score` in both modes, 100 × K with |S| ≤ 0, 1, 2, ψ, the error."""

_NO_ENTROPY = "some values of hyper-parameters leave no uncertainty about the order of the gaps: the score is 0/0"


def grid_scores(
    measures: Floats, gap: Floats, hparams: pd.DataFrame, test_size: int | None
) -> list[dict[str, float | str]]:
    """All of :data:`GRID`, ``pgdl_pair`` (the hyper-parameters that decide the official score) and ``grid_status``.

    Args:
        measures: float64 (m, n), finite, each larger for a larger gap.
        gap: float64 (n,), finite.
        hparams: (n, k) values of k hyper-parameters.
        test_size: test samples behind the gaps; None where it is not known, and then no sign error.

    Returns:
        One entry a measure. NaN where a number is undefined; ``grid_status`` is then "undefined: …" with
        the reasons, else "ok".
    """
    reasons: list[list[str]] = [[] for _ in measures]
    found = np.full((len(measures), len(GRID)), np.nan)
    pairs = [""] * len(measures)
    try:
        codes = grid_codes(hparams)
        official = pair_scores(measures, gap, codes)
        found[:, 0] = official.min(axis=1)
        found[:, 1] = pair_scores(measures, gap, codes, "symmetric").min(axis=1)
        found[:, 2:5] = set_scores(measures, gap, codes)
        found[:, :5] *= 100
        names = [f"{a} × {b}" for a, b in itertools.combinations(hparams.columns, 2)]
        for row, scores in enumerate(official):
            if math.isfinite(found[row, 0]):
                pairs[row] = names[int(scores.argmin())]
            if np.isnan(found[row, :5]).any():
                reasons[row].append(_NO_ENTROPY)
    except GenmeasuresError as error:
        for one in reasons:
            one.append(str(error))
    for row, measure in enumerate(measures):
        try:
            found[row, 5] = granulated_kendall(measure, gap, hparams).psi
        except GenmeasuresError as error:
            reasons[row].append(str(error))
        try:
            if test_size is not None:
                found[row, 6] = worst_sign_error(measure, gap, hparams, test_size)
        except GenmeasuresError as error:
            reasons[row].append(str(error))
    return [
        {
            **dict(zip(GRID, map(float, numbers), strict=True)),
            "pgdl_pair": pair,
            "grid_status": f"undefined: {'; '.join(dict.fromkeys(why))}" if why else "ok",
        }
        for numbers, pair, why in zip(found, pairs, reasons, strict=True)
    ]
