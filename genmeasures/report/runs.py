"""Tables of the runs of a sweep: an index, and the correlations of each measure in each run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from rich.console import Console

from genmeasures.report.console import Column, print_table
from genmeasures.results.runs import SEED, differing

_SCORES = ("pearson", "spearman", "kendall", "pgdl")


@dataclass(frozen=True)
class JudgedRun:
    """A run of a sweep with its judgment."""

    settings: Mapping[str, str]
    """Settings by name, from :func:`genmeasures.results.run_settings`."""
    models: int
    """Number of models."""
    judged: pd.DataFrame = field(default_factory=pd.DataFrame)
    """Table of :func:`genmeasures.judge`."""


def render_index(index: pd.DataFrame, console: Console) -> None:
    """Print the index of the runs of a sweep.

    Args:
        index: Columns ``run``, ``task``, ``models``, the settings in which runs differ, and ``file``.
        console: The console.

    Example:
        >>> render_index(pd.DataFrame({"run": ["1"], "models": [3]}), Console(quiet=True))
    """
    leave = {"models": 1, "task": 2, "file": 3}  # the name of a file contains its run
    columns = [
        Column(str(name), index[name].astype(str).tolist(), name not in ("models", "file"), leave.get(str(name), 0))
        for name in index.columns
    ]
    print_table(console, f"{len(index)} {'run' if len(index) == 1 else 'runs'}", columns)


def by_run(runs: Sequence[JudgedRun]) -> pd.DataFrame:
    """Mean correlations and scores over the runs that differ only in their seed.

    Args:
        runs: The judged runs of a sweep.

    Returns:
        One row for each combination of settings, target and measure: the settings in which the runs differ, "" where
        a run lacks one; ``seeds``, the number of runs; ``models``; ``against``; ``measure``; the means of
        ``pearson``, ``spearman``, ``kendall`` and ``pgdl``, each with ``_sd``, the sample standard deviation over
        seeds (denominator n − 1, NaN for one seed), and ``_n``, the number of seeds with a value.

    Example:
        >>> judged = {"against": ["gap"], "measure": ["m"], "spearman": [0.5], "kendall": [0.4], "pgdl": [3.0]}
        >>> runs = [
        ...     JudgedRun({"seed": str(seed)}, 8, pd.DataFrame({**judged, "pearson": [r]}))
        ...     for seed, r in enumerate((0.5, 0.7))
        ... ]
        >>> by_run(runs)[["seeds", "pearson", "pearson_sd"]].round(2).values.tolist()
        [[2.0, 0.6, 0.14]]
    """
    names = [name for name in differing([run.settings for run in runs]) if name != SEED]
    groups: dict[tuple[str, ...], list[JudgedRun]] = {}
    for run in runs:
        groups.setdefault(tuple(run.settings.get(name, "") for name in names), []).append(run)
    rows = []
    for values, members in groups.items():
        judged = [run.judged.assign(seed=run.settings.get(SEED, "")) for run in members if len(run.judged)]
        if not judged:
            continue
        table = pd.concat(judged, ignore_index=True)
        models = sorted({run.models for run in members})
        for (against, measure), rows_of_measure in table.groupby(["against", "measure"], sort=False):
            # Runs may share a seed and have different measures.
            by_seed = rows_of_measure.groupby(rows_of_measure["seed"], sort=False)[list(_SCORES)].mean()
            row = {
                **dict(zip(names, values, strict=True)),
                "seeds": len({run.settings.get(SEED) for run in members}),
                "models": "–".join(map(str, dict.fromkeys((models[0], models[-1])))),
                "against": against,
                "measure": measure,
            }
            for score in _SCORES:
                finite = by_seed[score].to_numpy(dtype=np.float64)
                finite = finite[np.isfinite(finite)]
                row[score] = float(finite.mean()) if len(finite) else np.nan
                row[f"{score}_sd"] = float(finite.std(ddof=1)) if len(finite) > 1 else np.nan
                row[f"{score}_n"] = len(finite)
            rows.append(row)
    return pd.DataFrame(rows)


def render_by_run(table: pd.DataFrame, aggregator: str, console: Console) -> None:
    """Print the table of :func:`by_run`: one table per target, one row per run, one column per measure.

    Args:
        table: From :func:`by_run`.
        aggregator: Name of the aggregator, for the title.
        console: The console.

    Example:
        >>> render_by_run(by_run([]), "Frobenius()", Console(quiet=True))
    """
    if table.empty:
        return
    settings = list(table.columns[: list(table.columns).index("seeds")])
    several = bool((table["seeds"] > 1).any())
    for against, rows in table.groupby("against", sort=False):
        measures = list(dict.fromkeys(rows["measure"].astype(str)))
        keys = list(dict.fromkeys(rows[[*settings, "seeds", "models"]].itertuples(index=False, name=None)))
        cells: dict[tuple[object, ...], dict[str, str]] = {key: {} for key in keys}
        for _, row in rows.iterrows():
            cells[tuple(row[[*settings, "seeds", "models"]])][str(row["measure"])] = _cell(row)
        columns = [Column(name, [str(key[index]) for key in keys], names=True) for index, name in enumerate(settings)]
        if several or not settings:
            columns.append(Column("seeds", [str(key[-2]) for key in keys]))
        columns.append(Column("models", [str(key[-1]) for key in keys], leave=len(measures) + 1))
        columns += [
            # In a narrow console, the last measures are left out first.
            Column(name, [cells[key].get(name, "") for key in keys], leave=index)
            for index, name in enumerate(measures)
        ]
        spread = ", mean ± standard deviation over seeds" if several else ""
        print_table(console, f"Pearson's correlation with {against}, {aggregator}{spread}", columns)


def _cell(row: pd.Series[float]) -> str:
    """``0.71 ± 0.05``, with the number of seeds if some have no value; a dash if none has one."""
    if not row["pearson_n"]:
        return "–"
    text = f"{round(row['pearson'], 2) + 0.0:.2f}"
    if row["pearson_n"] > 1:
        text += f"\n± {row['pearson_sd']:.2f}"
    return text if row["pearson_n"] == row["seeds"] else f"{text} ({row['pearson_n']})"
