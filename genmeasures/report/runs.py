"""Tables of the runs of a sweep: which there are, and what each measure tells in each."""

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
    """A run with its settings by name, and what :func:`genmeasures.judge` found."""

    settings: Mapping[str, str]
    models: int
    judged: pd.DataFrame = field(default_factory=pd.DataFrame)


def render_index(index: pd.DataFrame, console: Console) -> None:
    """Print which runs there are: ``run``, ``task``, ``models``, the settings in which they differ, and ``file``."""
    leave = {"models": 1, "task": 2, "file": 3}  # a file has its run in its name
    columns = [
        Column(str(name), index[name].astype(str).tolist(), name not in ("models", "file"), leave.get(str(name), 0))
        for name in index.columns
    ]
    print_table(console, f"{len(index)} {'run' if len(index) == 1 else 'runs'}", columns)


def by_run(runs: Sequence[JudgedRun]) -> pd.DataFrame:
    """What each measure tells in each run, with mean and spread over the runs that differ in their seed alone.

    Returns:
        One row for each run, target and measure: the settings in which the runs differ, "" where a run does not
        have one; ``seeds``, how many runs the row is of; ``models``; ``against``; ``measure``; then the means of
        ``pearson``, ``spearman``, ``kendall`` and ``pgdl``, each with ``_sd``, the standard deviation over seeds
        (n − 1 in its denominator, NaN of one), and ``_n``, the number of seeds that have it.
    """
    names = [name for name in differing([run.settings for run in runs]) if name != SEED]
    groups: dict[tuple[str, ...], list[JudgedRun]] = {}
    for run in runs:
        groups.setdefault(tuple(run.settings.get(name, "") for name in names), []).append(run)
    rows = []
    for values, members in groups.items():
        judged = [one.judged.assign(seed=one.settings.get(SEED, "")) for one in members if len(one.judged)]
        if not judged:
            continue
        whole = pd.concat(judged, ignore_index=True)
        models = sorted({one.models for one in members})
        for (against, measure), found in whole.groupby(["against", "measure"], sort=False):
            # Runs may share a seed, and differ in the measures that they have.
            found = found.groupby(found["seed"], sort=False)[list(_SCORES)].mean()
            row = {
                **dict(zip(names, values, strict=True)),
                "seeds": len({one.settings.get(SEED) for one in members}),
                "models": "–".join(map(str, dict.fromkeys((models[0], models[-1])))),
                "against": against,
                "measure": measure,
            }
            for score in _SCORES:
                finite = found[score].to_numpy(dtype=np.float64)
                finite = finite[np.isfinite(finite)]
                row[score] = float(finite.mean()) if len(finite) else np.nan
                row[f"{score}_sd"] = float(finite.std(ddof=1)) if len(finite) > 1 else np.nan
                row[f"{score}_n"] = len(finite)
            rows.append(row)
    return pd.DataFrame(rows)


def render_by_run(table: pd.DataFrame, aggregator: str, console: Console) -> None:
    """Print what :func:`by_run` found: a table for each target, a row for each run, a column for each measure."""
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
        columns = [Column(name, [str(key[place]) for key in keys], names=True) for place, name in enumerate(settings)]
        if several or not settings:
            columns.append(Column("seeds", [str(key[-2]) for key in keys]))
        columns.append(Column("models", [str(key[-1]) for key in keys], leave=len(measures) + 1))
        columns += [
            # Where there is no room the last measures are left out first.
            Column(name, [cells[key].get(name, "") for key in keys], leave=place)
            for place, name in enumerate(measures)
        ]
        spread = ", mean ± standard deviation over seeds" if several else ""
        print_table(console, f"Pearson's correlation with {against}, {aggregator}{spread}", columns)


def _cell(row: pd.Series[float]) -> str:
    """``0.71 ± 0.05``, with the number of seeds where not all have a value; a dash where none has."""
    if not row["pearson_n"]:
        return "–"
    said = f"{round(row['pearson'], 2) + 0.0:.2f}"
    if row["pearson_n"] > 1:
        said += f"\n± {row['pearson_sd']:.2f}"
    return said if row["pearson_n"] == row["seeds"] else f"{said} ({row['pearson_n']})"
