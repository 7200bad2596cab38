"""What is told of one measure on a grid of hyper-parameters, as columns of a table."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pandas as pd

from genmeasures.errors import GenmeasuresError
from genmeasures.judging.correlation import Floats
from genmeasures.judging.pgdl import (
    conditional_mutual_information,
    granulated_kendall,
    pgdl_pairs,
    pgdl_score,
    worst_sign_error,
)

GRID = ("pgdl", "pgdl_symmetric", "cmi_0", "cmi_1", "cmi_2", "granulated_kendall", "worst_sign_error")
"""Numbers of :func:`grid_scores`: 100 × :func:`pgdl_score` in both modes, 100 × K with |S| ≤ 0, 1, 2, ψ, the error."""


def grid_scores(
    measure: Floats, gap: Floats, hparams: pd.DataFrame, test_size: int | None
) -> Mapping[str, float | str]:
    """All of :data:`GRID`, ``pgdl_pair`` (the hyper-parameters that decide the official score) and ``grid_status``.

    Args:
        measure: float64 (n,), larger for a larger gap.
        gap: float64 (n,).
        hparams: (n, k) values of k hyper-parameters.
        test_size: test samples behind the gaps; None where it is not known, and then no sign error.

    Returns:
        NaN where a number is undefined; ``grid_status`` is then "undefined: …" with the reasons, else "ok".
    """
    reasons: list[str] = []

    def attempt(name: str) -> float:
        try:
            if name == "granulated_kendall":
                return granulated_kendall(measure, gap, hparams).psi
            if name == "worst_sign_error":
                return math.nan if test_size is None else worst_sign_error(measure, gap, hparams, test_size)
            if name.startswith("cmi_"):
                return 100 * conditional_mutual_information(measure, gap, hparams, int(name[-1]))
            return 100 * pgdl_score(measure, gap, hparams, "official" if name == "pgdl" else "symmetric")
        except GenmeasuresError as error:
            reasons.append(str(error))
            return math.nan

    found: dict[str, float | str] = {name: attempt(name) for name in GRID}
    pair = ""
    if math.isfinite(float(found["pgdl"])):
        pairs = pgdl_pairs(measure, gap, hparams)
        least = pairs[pairs["minimum"]].iloc[0]
        pair = f"{least['first']} × {least['second']}"
    status = f"undefined: {'; '.join(dict.fromkeys(reasons))}" if reasons else "ok"
    return {**found, "pgdl_pair": pair, "grid_status": status}
