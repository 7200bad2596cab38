"""Commands ``genmeasures estimate`` and ``genmeasures rank``."""

from __future__ import annotations

import argparse

import numpy as np
import pandas as pd
import xarray as xr
from rich.console import Console

from genmeasures.api import aggregate, estimate, rank
from genmeasures.cli.check import options_of
from genmeasures.errors import OptionError
from genmeasures.estimates import METHODS
from genmeasures.registry import registry
from genmeasures.report import Column, make_console, print_json, print_line, print_table
from genmeasures.results import load, save
from genmeasures.results.schema import STATUS


def estimate_command(parsed: argparse.Namespace) -> int:
    """Estimate from files, print a table, and save the result.

    Args:
        parsed: arguments of the command.

    Returns:
        The exit status, 1 if no model could be used at all.

    Raises:
        GenmeasuresError: an option is wrong, or no file can be used.

    Example:
        >>> from genmeasures.cli.main import main
        >>> main(["estimate", "no_such_folder"])
        1
    """
    ds = estimate(
        parsed.logits,
        method=parsed.method,
        metric=parsed.metric,
        scale=parsed.scale,
        average=parsed.average,
        background=None if parsed.background < 0 else parsed.background,
        confidence=parsed.confidence,
        resamples=parsed.resamples,
        seed=parsed.seed,
    )
    console = make_console(quiet=parsed.json)
    _print_estimates(ds, console)
    saved = None
    if parsed.output:
        if not parsed.output.endswith(".nc"):
            raise OptionError(f"--output must be a file that ends with .nc, got {parsed.output}")
        saved = str(save(ds, parsed.output))
        print_line(console, f"result: {saved}")
    table = rank(ds)
    _print_choice(table, console, " %")
    if parsed.json:
        print_json({"estimates": _records(ds), "ranking": _rows(table), "output": saved})
    return 0


def rank_command(parsed: argparse.Namespace) -> int:
    """Rank the models of a result file.

    Args:
        parsed: arguments of the command.

    Returns:
        The exit status, 0.

    Raises:
        GenmeasuresError: the file cannot be read, or a name is unknown.

    Example:
        >>> from genmeasures.cli.main import main
        >>> main(["rank", "no_such_file.nc"])
        1
    """
    ds = load(parsed.result)
    if "layer" in ds.dims and "estimator" not in ds.dims:
        aggregator = registry().make("aggregator", parsed.aggregator[0], options_of(parsed.aggregator[1:]))
        ds = aggregate(ds, aggregator)  # type: ignore[arg-type]
    by = None if parsed.by is None else {name.lstrip("+~"): _sign(name) for name in parsed.by}
    table = rank(ds, by, against=parsed.against, seed=parsed.seed)
    console = make_console(quiet=parsed.json)
    for criterion, rows in table.groupby("by", sort=False):
        print_table(console, f"By {criterion}", _ranking_columns(rows))
        for status in rows["status"].unique():
            if status != "ok":
                models = rows["model"][rows["status"] == status]
                print_line(console, f"{status} ({', '.join(models)})", wrap=True)
    _print_choice(table, console, " %" if "estimator" in ds.dims else "")
    if parsed.json:
        print_json(_rows(table))
    return 0


def _sign(name: str) -> int:
    return {"+": 1, "~": -1}.get(name[:1], 0)


def _print_estimates(ds: xr.Dataset, console: Console) -> None:
    """One table: model × method, with the known values."""
    columns = [Column("model", ds["model"].values.astype(str).tolist(), names=True)]
    for number, method in enumerate(ds["estimator"].values.astype(str)):
        own = ds.isel(estimator=number)
        cells = [
            _interval(*map(float, ends))
            for ends in zip(*(own[f"estimate{end}"].values for end in ("", "_low", "_high")), strict=True)
        ]
        columns.append(Column(method, cells))
    known = f"target_{ds.attrs['metric']}"
    if known in ds.coords:
        columns.append(Column("known", [_percent(float(value)) for value in ds[known].values]))
    what = "Accuracy" if ds.attrs["metric"] == "accuracy" else "Mean Dice coefficient"
    print_table(console, f"{what} on the target data, %, {ds.attrs['confidence']:.0%} intervals", columns)
    for number, method in enumerate(ds["estimator"].values.astype(str)):
        statuses = ds.isel(estimator=number)[f"estimate{STATUS}"].values.astype(str)
        for status in dict.fromkeys(statuses):
            if status != "ok":
                models = ds["model"].values.astype(str)[statuses == status]
                print_line(console, f"{method}: {status} ({', '.join(models)})", wrap=True)
    for method in ds["estimator"].values.astype(str):
        print_line(console, f"{method}: {METHODS[method]}", wrap=True)


def _print_choice(table: pd.DataFrame, console: Console, units: str) -> None:
    """A line for each criterion: the model to take, and how sure that is."""
    for criterion, rows in table.groupby("by", sort=False):
        first = rows.iloc[0]
        if not np.isfinite(first["rank"]):
            continue
        parts = [f"by {criterion}: take {first['model']}"]
        if np.isfinite(first["p_best"]):
            parts.append(f"best with probability {first['p_best']:.2f}")
        if np.isfinite(first["low"]):
            parts.append(f"{first['value']:.4g}{units} [{first['low']:.4g}, {first['high']:.4g}]")
        if np.isfinite(first["regret"]):
            parts.append(f"regret {first['regret']:.3g}")
        print_line(console, ", ".join(parts))


def _ranking_columns(rows: pd.DataFrame) -> list[Column]:
    texts = {
        "value": [f"{value:.4g}" if np.isfinite(value) else "–" for value in rows["value"]],
        "interval": [
            f"[{low:.4g}, {high:.4g}]" if np.isfinite(low) else "–"
            for low, high in zip(rows["low"], rows["high"], strict=True)
        ],
        "P(best)": [f"{value:.2f}" if np.isfinite(value) else "–" for value in rows["p_best"]],
    }
    if rows["known"].notna().any():
        texts |= {
            name: [f"{value:.4g}" if np.isfinite(value) else "–" for value in rows[name]]
            for name in ("known", "regret")
        }
    ranks = [f"{value:g}" if np.isfinite(value) else "–" for value in rows["rank"]]
    return [
        Column("rank", ranks),
        Column("model", rows["model"].tolist(), names=True),
        *(Column(name, cells) for name, cells in texts.items()),
    ]


def _interval(value: float, low: float, high: float) -> str:
    if not np.isfinite(low):
        return _percent(value)
    return f"{_percent(value)}\n[{_percent(low)}, {_percent(high)}]"


def _percent(value: float) -> str:
    return f"{value:.1f}" if np.isfinite(value) else "–"


def _records(ds: xr.Dataset) -> list[dict[str, object]]:
    columns = ["estimate", "estimate_low", "estimate_high", f"estimate{STATUS}"]
    frame = ds[columns].to_dataframe().reset_index()[["model", "estimator", *columns]]
    known = f"target_{ds.attrs['metric']}"
    if known in ds.coords:
        frame["known"] = frame["model"].map(dict(zip(ds["model"].values, ds[known].values, strict=True)))
    return _rows(frame)


def _rows(frame: pd.DataFrame) -> list[dict[str, object]]:
    return [
        {str(key): value for key, value in row.items()}
        for row in frame.astype(object).where(frame.notna(), None).to_dict("records")
    ]
