"""Tables and figures of the study, from its result files: ``python benchmarks/studies/unet/report.py [folder]``.

Reads ``receptive_field.nc`` and ``whole_tensor.nc`` in the folder, and what there is of
``receptive_field_linear.nc`` (confidence by linear densities), ``sampling.nc`` (more patches in the deepest layers),
``roughness.csv`` (its other choices), ``…_seeds.nc`` (further seeds) and ``denoising_….nc``; writes ``tables.md`` and
PNGs beside them.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import figures
import numpy as np
import pandas as pd
import xarray as xr
from analysis import Interval, two_way, variance_explained
from numpy.typing import NDArray
from study import (
    EXTRACTORS,
    MAIN,
    MEASURES,
    PAPER,
    TARGETS,
    WEIGHTS,
    Correlation,
    Floats,
    Study,
    averages,
    correlation,
    partial_over_runs,
    read,
)

import genmeasures
from genmeasures.errors import GenmeasuresError
from genmeasures.judging import dummies, pearson
from genmeasures.results import load

EPOCHS = ((1, 4), (5, 12), (13, 32))
"""Ranges of epochs that correlations are given for alone."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the tables and figures of the UNet study.")
    default = Path(__file__).parent
    parser.add_argument("folder", type=Path, nargs="?", default=default, help="where the result files are")
    folder: Path = parser.parse_args().folder
    try:
        (folder / "tables.md").write_text(tables(folder), encoding="utf-8")
        for path in draw(folder):
            print(path)
    except GenmeasuresError as error:
        raise SystemExit(str(error)) from error


def tables(folder: Path) -> str:
    """All tables, in Markdown. Raises ResultError for result files that are missing or cannot be used."""
    study = segmentation(folder)
    linear = folder / "receptive_field_linear.nc"
    parts = [
        "# Tables of the UNet study",
        "Written by `report.py` from the result files beside it. Intervals hold 95 % of bootstrap resamples: “models” "
        "resamples models one by one, as `genmeasures.judge` does; “runs” resamples whole trainings, as the "
        "checkpoints of one training are not independent. “–” stands for what is not defined.",
        "## Models",
        _models(study),
        "## Table 1: correlation with test IoU",
        "Averages over layers weighted by the Frobenius norm of the weights. The paper uses layers 2–10 of its 11.",
        _table_1(study),
        "## Variants",
        _variants(study, load(linear) if linear.is_file() else None),
        "## Without the deepest layer",
        f"At {study.layers[_deepest(study)]} a patch of the study is one pixel: its vectors are as few as the patches. "
        "Correlation with test IoU, weighted by Frobenius norms, all layers but this one.",
        _without_deepest(study),
    ]
    if (folder / "sampling.nc").is_file():
        more = load(folder / "sampling.nc")
        parts += ["## More patches for the deepest layers", *_sampling(study, more)]
    if (folder / "roughness.csv").is_file():
        parts += ["## Roughness by other choices", *_roughness(pd.read_csv(folder / "roughness.csv"))]
    parts += _common(study)
    if _has_seeds(folder):
        more = segmentation(folder, seeds=True)
        parts += ["## With further seeds", _models(more), _table_1(more), _by(more, "seed")]
        parts += ["Beyond the epoch, with all seeds:", _beyond_epoch(more), "Sums of squares, with all seeds:"]
        parts += [_shares(more)]
    if (folder / "denoising_receptive_field.nc").is_file():
        study = denoising(folder)
        parts += ["# Denoising", "## Models", _models(study)]
        for target in study.targets:
            parts += [f"## Correlation with {TARGETS[target]}", _correlations(study, target)]
        parts += _common(study)
    return "\n\n".join(parts) + "\n"


def draw(folder: Path) -> Iterator[Path]:
    """Draw all figures into the folder; yields their paths."""
    studies = {"": segmentation(folder)}
    if _has_seeds(folder):
        studies["seeds_"] = segmentation(folder, seeds=True)
    if (folder / "denoising_receptive_field.nc").is_file():
        studies["denoising_"] = denoising(folder)
    for prefix, study in studies.items():
        for name, plot in (
            ("scatter", figures.scatter),
            ("layers", figures.layers),
            ("training", figures.training),
            ("layer_correlations", figures.layer_correlations),
        ):
            path = folder / f"{prefix}{name}.png"
            plot(study, path)
            yield path


def segmentation(folder: Path, seeds: bool = False) -> Study:
    """The results of the task ``unet`` in a folder."""
    return read(folder, "", "objective", ("test_iou", "generalization_gap"), seeds)


def denoising(folder: Path) -> Study:
    """The results of the task ``unet_denoising`` in a folder."""
    return read(folder, "denoising_", "train_cases", ("test_r2", "test_ssim", "generalization_gap"))


def _has_seeds(folder: Path) -> bool:
    return all((folder / f"{name}_seeds.nc").is_file() for name in EXTRACTORS)


# What tables there are


def _common(study: Study) -> list[str]:
    """The tables that both tasks have."""
    target = TARGETS[study.targets[0]]
    groups = "objective" if study.group == "objective" else "number of training cases"
    given = "objectives" if study.group == "objective" else "numbers of training cases"
    parts = []
    if study.group == "objective":
        parts += ["## Correlation with the generalization gap", _correlations(study, "generalization_gap")]
    return [
        *parts,
        f"## What the epoch alone tells of {target}",
        _epoch(study),
        "## Beyond the epoch",
        f"Partial correlations with {target}: Pearson's, of what linear regressions on log epoch (and dummies of the "
        f"{given}) leave of both. R² is that of a linear model on log epoch and {given}, and what the measure adds.",
        _beyond_epoch(study),
        f"## Within each {groups}",
        _by(study, study.group),
        "## By epoch",
        _by(study, "epoch"),
        f"## Layer by layer: Pearson with {target}",
        _by_layer(study),
        "## Sums of squares",
        f"Shares of the total sum of squares between {given}, between epochs, and the rest: their interaction"
        + (", and what differs between seeds." if len(study.seeds) > 1 else "."),
        _shares(study),
    ]


def _models(study: Study) -> str:
    ds, main = study.any, study.values(study.targets[0])
    rows = [
        ["models", str(ds.sizes["model"])],
        ["objectives" if study.group == "objective" else "training cases", ", ".join(study.groups)],
        ["epochs", f"{int(ds['epoch'].min())} to {int(ds['epoch'].max())}"],
        ["seeds", ", ".join(map(str, study.seeds))],
        ["layers", ", ".join(study.layers)],
    ]
    for target in dict.fromkeys([*study.targets, "train_" + study.targets[0].removeprefix("test_")]):
        if target in ds.coords:
            values = study.values(target)
            low, middle, high = np.nanquantile(values, [0, 0.5, 1])
            name = TARGETS.get(target, target.replace("_", " ").replace("iou", "IoU").replace("r2", "R²"))
            rows.append([f"{name}: least, median, largest", f"{_number(low)}, {_number(middle)}, {_number(high)}"])
    best = int(np.nanargmax(main))
    rows.append(["best model", f"{ds['model'].values[best]} ({_number(main[best])})"])
    for name, readable in EXTRACTORS.items():
        for measure in _measures(study.results[name]):
            status = study.results[name][f"{measure}_status"].values.astype(str)
            missing = int((~np.isfinite(study.results[name][measure].values)).sum())
            notes = int(np.char.startswith(status, "note").sum())
            if missing or notes:
                text = f"{missing} of {status.size} without a value, {notes} with a note"
                rows.append([f"{readable}, {MEASURES[measure]}", text])
    return _table(["", ""], rows, words=2)


def _table_1(study: Study) -> str:
    header = ["features", "measure", "paper", "layers", "Pearson", "models", "runs", "Spearman", "n"]
    rows = []
    for (extractor, measure), paper in PAPER.items():
        for inner in (False, True):
            x = study.reduced(extractor, measure, inner=inner)
            found = correlation(x, study.values("test_iou"), study.runs)
            layers = _inner(study) if inner else "all"
            names = [EXTRACTORS[extractor], MEASURES[measure], _number(paper), layers]
            rows.append([*names, *_coefficients(found)])
    return _table(header, rows, words=2)


def _variants(study: Study, linear: xr.Dataset | None) -> str:
    """Other weights of the layers, confidence without weights, and by linear densities."""
    header = ["features", "measure", "weights", "layers", "Pearson", "models", "runs", "Spearman", "n"]
    cases = [(extractor, measure, MEASURES[measure], study.averages) for extractor, measure in _each(study)]
    if linear is not None:
        name = "receptive_field"
        other = averages({name: linear.sel(model=study.any["model"].values)})
        cases += [(name, measure, f"{MEASURES[measure]}, linear density", other) for measure in _measures(linear)]
    rows = []
    for extractor, measure, label, found in cases:
        for weights, inner in itertools.product(WEIGHTS, (False, True)):
            if weights == "frobenius" and measure in MAIN and found is study.averages:
                continue  # they stand in Table 1
            x = np.asarray(found[extractor, weights, inner][measure].values, dtype=np.float64)
            names = [EXTRACTORS[extractor], label, WEIGHTS[weights], _inner(study) if inner else "all"]
            rows.append([*names, *_coefficients(correlation(x, study.values("test_iou"), study.runs))])
    return _table(header, rows, words=3)


def _deepest(study: Study) -> int:
    """Index of the layer with the fewest positions."""
    return int(study.results["receptive_field"]["positions"].values[0].argmin())


def _without_deepest(study: Study) -> str:
    header = ["features", "measure", "Pearson", "models", "runs", "Spearman", "n"]
    kept = [place for place in range(len(study.layers)) if place != _deepest(study)]
    found = {name: genmeasures.aggregate(ds.isel(layer=kept), "frobenius") for name, ds in study.results.items()}
    rows = []
    for extractor, measure in _each(study):
        x = np.asarray(found[extractor][measure].values, dtype=np.float64)
        cells = _coefficients(correlation(x, study.values("test_iou"), study.runs))
        rows.append([EXTRACTORS[extractor], MEASURES[measure], *cells])
    return _table(header, rows, words=2)


def _sampling(study: Study, more: xr.Dataset) -> list[str]:
    """Pearson's correlations with few and with many patches, of the same checkpoints: two tables with their texts."""
    few = study.results["receptive_field"].sel(model=more["model"].values)
    iou = np.asarray(more["test_iou"].values, dtype=np.float64)
    names = [str(name) for name in more["layer_name"].values[0]]
    places = [[str(name) for name in few["layer_name"].values[0]].index(name) for name in names]
    counts = [int(ds.attrs["test_size"]) for ds in (few, more)]
    measures = _measures(more)
    merged = few.copy(deep=True)
    layers = []
    for row, (name, place) in enumerate(zip(names, places, strict=True)):
        cells = []
        for measure in measures:
            merged[measure][:, place] = more[measure].values[:, row]
            both = few[measure].values[:, place], more[measure].values[:, row]
            cells += [_signed(float(pearson(values, iou))) for values in both]
        layers.append([f"{place + 1} {name.removesuffix('.conv')}", *cells])
    runs = np.array([f"{a}{b}" for a, b in zip(more["objective"].values, more["seed"].values, strict=True)])
    known: Floats = np.column_stack(
        [np.log(more["epoch"].values.astype(np.float64)), dummies(more["objective"].values)]
    )
    objective, epoch = more["objective"].values.astype(str), more["epoch"].values
    parts = {str(name): objective == name for name in dict.fromkeys(objective)}
    parts |= {f"epochs {low}–{high}": (epoch >= low) & (epoch <= high) for low, high in EPOCHS}
    rows, within = [], []
    for count, ds in zip(counts, (few, merged), strict=True):
        averaged = genmeasures.aggregate(ds, "frobenius")
        for measure in measures:
            x = np.asarray(averaged[measure].values, dtype=np.float64)
            left, interval = partial_over_runs(x, iou, known, runs)
            cells = [*_coefficients(correlation(x, iou, runs)), _number(left), _interval(interval)]
            rows.append([str(count), MEASURES[measure], *cells])
            found = [_signed(float(pearson(x[part], iou[part]))) for part in parts.values()]
            within.append([str(count), MEASURES[measure], *found])
    header = ["layer", *(f"{MEASURES[measure]}: {count}" for measure in measures for count in counts)]
    columns = [
        "patches",
        "measure",
        "Pearson",
        "models",
        "runs",
        "Spearman",
        "n",
        "given log epoch and objective",
        "runs",
    ]
    return [
        f"Receptive field; {more.sizes['model']} checkpoints with {counts[0]} and with {counts[1]} patches in these "
        "layers. Pearson with test IoU:",
        _table(header, layers, words=1),
        "The average over all layers, Frobenius-weighted, in which these layers have one value or the other:",
        _table(columns, rows, words=2),
        "The same average, within each objective and range of epochs: Pearson.",
        _table(["patches", "measure", *parts], within, words=2),
    ]


def _roughness(table: pd.DataFrame) -> list[str]:
    """Pearson's correlations of roughness, averaged over groups of layers, by the choices in roughness.csv."""
    encoder = table["layer_name"].str.startswith("encoder")
    parts = {"all layers": table["layer"] > 0, "encoder": encoder, "decoder and head": ~encoder}
    rows = []
    for choice, of_choice in table.groupby("choice", sort=False):
        cells = []
        for chosen in parts.values():
            kept = of_choice[chosen.loc[of_choice.index]].dropna(subset=["roughness"])
            weighed = kept.assign(product=kept["weight_norm"] * kept["roughness"])
            by_model = weighed.groupby("model").agg({"product": "sum", "weight_norm": "sum", "test_iou": "first"})
            value = (by_model["product"] / by_model["weight_norm"]).to_numpy()
            runs = by_model.index.str.split("_epoch").str[0].to_numpy()
            found = correlation(value, by_model["test_iou"].to_numpy(), runs)
            cells += [_signed(found.pearson), _interval(found.models)]
        rows.append([str(choice), *cells])
    header = [""]
    for name in parts:
        header += [name, "models"]
    epochs = ", ".join(map(str, sorted(table["epoch"].unique())))
    text = (
        f"Receptive field, {table['model'].nunique()} checkpoints (epochs {epochs}), Frobenius-weighted over these "
        "layers: Pearson with test IoU."
    )
    return [text, _table(header, rows, words=1)]


def _correlations(study: Study, target: str) -> str:
    header = ["features", "measure", "layers", "Pearson", "models", "runs", "Spearman", "n"]
    rows = []
    for extractor, measure in _each(study):
        for inner in (False, True):
            found = correlation(study.reduced(extractor, measure, inner=inner), study.values(target), study.runs)
            layers = _inner(study) if inner else "all"
            rows.append([EXTRACTORS[extractor], MEASURES[measure], layers, *_coefficients(found)])
    return _table(header, rows, words=2)


def _epoch(study: Study) -> str:
    epoch = study.values("epoch")
    rows = []
    for target in study.targets:
        for name, x in (("epoch", epoch), ("log epoch", np.log(epoch))):
            rows.append([name, TARGETS[target], *_coefficients(correlation(x, study.values(target), study.runs))])
    return _table(["", "against", "Pearson", "models", "runs", "Spearman", "n"], rows, words=2)


def _beyond_epoch(study: Study) -> str:
    header = ["features", "measure", "Pearson", "given log epoch", "runs", f"given log epoch and {_group(study)}"]
    header += ["runs", "R² without", "R² added"]
    y, runs = study.values(study.targets[0]), study.runs
    epoch = np.log(study.values("epoch"))[:, None]
    both = np.column_stack([epoch, dummies(study.labels)])
    rows = []
    for extractor, measure in _each(study):
        x = study.reduced(extractor, measure)
        cells = [_number(correlation(x, y, runs).pearson)]
        for given in (epoch, both):
            value, interval = partial_over_runs(x, y, given, runs)
            cells += [_number(value), _interval(interval)]
        used = np.isfinite(x) & np.isfinite(y)
        explained = variance_explained(y[used], both[used], x[used])
        cells += [_number(explained.base), _number(explained.added)]
        rows.append([EXTRACTORS[extractor], MEASURES[measure], *cells])
    return _table(header, rows, words=2)


def _by(study: Study, factor: str) -> str:
    """Pearson's correlation within the models of each group, seed or range of epochs, with its interval over models."""
    columns: dict[str, NDArray[np.bool_]]
    if factor == "epoch":
        epoch = study.values("epoch")
        columns = {f"epochs {low}–{high}": (epoch >= low) & (epoch <= high) for low, high in EPOCHS}
        columns = {name: chosen for name, chosen in columns.items() if chosen.any()}
    elif factor == "seed":
        columns = {f"seed {seed}": study.values("seed") == seed for seed in study.seeds}
    else:
        columns = {name: study.labels == name for name in study.groups}
    rows = []
    for extractor, measure in _each(study):
        x, y = study.reduced(extractor, measure), study.values(study.targets[0])
        found = [correlation(x[chosen], y[chosen], study.runs[chosen]) for chosen in columns.values()]
        cells = [f"{_number(one.pearson)} {_interval(one.models)}" for one in found]
        rows.append([EXTRACTORS[extractor], MEASURES[measure], *cells])
    log_epoch = np.log(study.values("epoch"))
    if factor != "epoch":
        y = study.values(study.targets[0])
        found = [correlation(log_epoch[chosen], y[chosen], study.runs[chosen]) for chosen in columns.values()]
        rows.append(["–", "log epoch", *(f"{_number(one.pearson)} {_interval(one.models)}" for one in found)])
    return _table(["features", "measure", *columns], rows, words=2)


def _by_layer(study: Study) -> str:
    header = ["layer", *(f"{EXTRACTORS[e]}: {MEASURES[m]}" for e, m in _each(study))]
    y = study.values(study.targets[0])
    rows = []
    for place, name in enumerate(study.layers):
        found = []
        for extractor, measure in _each(study):
            x = study.by_layer(extractor, measure)[:, place]
            used = np.isfinite(x) & np.isfinite(y)
            found.append(_signed(float(pearson(x[used], y[used]))))
        rows.append([f"{place + 1} {name}", *found])
    return _table(header, rows, words=1)


def _shares(study: Study) -> str:
    named: list[tuple[str, Floats]] = [(TARGETS[target], study.values(target)) for target in study.targets]
    named += [(f"{EXTRACTORS[e]}, {MEASURES[m]}", study.reduced(e, m)) for e, m in _each(study)]
    rows = []
    for name, values in named:
        found = two_way(values, study.labels, study.values("epoch"))
        cells = [_number(part) for part in found]
        if len(study.seeds) > 1:
            cells.append(_number(two_way(values, study.runs, study.values("epoch")).first))
        rows.append([name, *cells])
    header = ["of", f"between {_groups(study)}", "between epochs", "rest"]
    return _table([*header, "between runs"] if len(study.seeds) > 1 else header, rows, words=1)


# Parts of tables


def _each(study: Study) -> list[tuple[str, str]]:
    """Extractors and measures, in the order of the tables."""
    return [(extractor, measure) for extractor, ds in study.results.items() for measure in _measures(ds)]


def _measures(ds: xr.Dataset) -> list[str]:
    return [measure for measure in MEASURES if measure in ds]


def _group(study: Study) -> str:
    return "objective" if study.group == "objective" else "training cases"


def _groups(study: Study) -> str:
    return "objectives" if study.group == "objective" else "training cases"


def _inner(study: Study) -> str:
    return f"2–{len(study.layers) - 1}"


def _coefficients(found: Correlation) -> list[str]:
    cells = [_number(found.pearson), _interval(found.models), _interval(found.runs), _number(found.spearman)]
    return [*cells, str(found.n)]


def _number(value: float, decimals: int = 3) -> str:
    """Rounded, with no minus before what is rounded to zero."""
    return "–" if math.isnan(value) else f"{round(value, decimals) + 0.0:.{decimals}f}"


def _signed(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:+.3f}"


def _interval(interval: Interval) -> str:
    return "–" if math.isnan(interval.low) else f"[{_number(interval.low, 2)}, {_number(interval.high, 2)}]"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], words: int) -> str:
    """A table of which the first columns, ``words`` of them, are set to the left and the others to the right."""
    rule = ["---" if place < words else "---:" for place in range(len(header))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, rule, *rows))


if __name__ == "__main__":
    main()
