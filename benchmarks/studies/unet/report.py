"""Tables and figures of the study, from its result files: ``python benchmarks/studies/unet/report.py [folder]``.

Reads ``receptive_field.nc`` and ``whole_tensor.nc`` in the folder, which ``measure.py`` writes, and what there is of
its other results and of ``roughness.csv``; writes ``tables.md`` and PNGs beside them.
"""

from __future__ import annotations

import argparse
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
    DEFAULT,
    EXTRACTORS,
    FAMILIES,
    MEASURES,
    PAPER,
    READINGS,
    TARGETS,
    Correlation,
    Floats,
    Study,
    column,
    correlation,
    partial_over_runs,
    read,
)

import genmeasures
from genmeasures.aggregators import Frobenius, LastK
from genmeasures.errors import GenmeasuresError
from genmeasures.judging import pearson
from genmeasures.results import load

EPOCHS = ((1, 4), (5, 12), (13, 32))
"""Ranges of epochs that correlations are given for alone."""
OTHER_SHIFTS = ("contrast", "resolution")
"""Shifts of the test cases by which networks are scored but not measured."""


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
    parts = [
        "# Tables of the UNet study",
        "Written by `report.py` from the result files beside it. Intervals hold 95 % of bootstrap resamples: “models” "
        "resamples models one by one, as `genmeasures.judge` does; “runs” resamples whole trainings, as the "
        "checkpoints of one training are not independent. “–” stands for what is not defined. L layers are averaged "
        "with the Frobenius norms w of their weights, or their inverses: Σwm/Σw, Σwm/L, Σ(m/w)/Σ(1/w) or Σ(m/w)/L. "
        f"The paper uses layers {_inner(study)} of its {len(study.layers)}.",
        "## Models",
        _models(study),
        "## Table 1 in all readings",
        "Pearson correlation with test IoU, and how much larger its absolute value is with receptive fields, where the "
        "sign is the same.",
        _readings({"default": study}),
    ]
    blocks = _blocks(folder)
    if blocks is not None:
        parts += [
            f"The {blocks.any.sizes['model']} networks whose layers are also read after the sums of their blocks:",
            _readings({"default": study.of(blocks.any["model"].values), "block": blocks}),
        ]
    parts += ["## Table 1 with intervals", _table_1(study)]
    parts += [
        "## The weights alone",
        "Mean norm of the weights over the layers, and mean of its inverse.",
        _weights(study),
    ]
    if (folder / "large_receptive_field.nc").is_file():
        parts += ["## Number of vectors", *_large(study, load(folder / "large_receptive_field.nc"))]
    if (folder / "roughness.csv").is_file():
        parts += ["## Roughness by other choices", *_roughness(pd.read_csv(folder / "roughness.csv"))]
    parts += ["## Correlation with the generalization gap", _correlations(study, "generalization_gap")]
    parts += _common(study)
    if len(study.seeds) > 1:
        parts += ["## Within each seed", _by(study, "seed")]
    if (folder / "few_cases_receptive_field.nc").is_file():
        few, shifted = few_cases(folder)
        parts += ["# Few training cases", "## Models", _models(few), "## Which network holds up elsewhere"]
        parts += [*_elsewhere(few, shifted), *_common(few)]
    if (folder / "pgdl_vgg_whole_tensor.nc").is_file():
        parts += ["# Networks in the format of PGDL", *_classifiers(classifiers(folder))]
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
    if (folder / "few_cases_receptive_field.nc").is_file():
        studies["few_cases_"], studies["few_cases_shifted_"] = few_cases(folder)
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
    if (folder / "pgdl_vgg_whole_tensor.nc").is_file():
        path = folder / "pgdl.png"
        figures.classifiers(classifiers(folder), path)
        yield path


def segmentation(folder: Path) -> Study:
    """The results of the task ``unet`` in a folder."""
    return read(folder, "", ("objective",), ("test_iou", "generalization_gap"))


def few_cases(folder: Path) -> tuple[Study, Study]:
    """The same for few training cases, measured on the test cases and on the shifted ones: the same models."""
    groups, targets = ("objective", "train_cases"), ("test_iou", "generalization_gap")
    few, shifted = (read(folder, f"few_cases_{part}", groups, targets) for part in ("", "shifted_"))
    return few, shifted.of(few.any["model"].values)


def denoising(folder: Path) -> Study:
    """The results of the task ``unet_denoising`` in a folder."""
    return read(folder, "denoising_", ("train_cases",), ("test_r2", "test_ssim", "generalization_gap"))


def classifiers(folder: Path) -> dict[tuple[str, str], xr.Dataset]:
    """The networks in the format of PGDL, by family and extractor: see ``pgdl.py``."""
    return {(family, name): load(folder / f"pgdl_{family}_{name}.nc") for family in FAMILIES for name in EXTRACTORS}


def _blocks(folder: Path) -> Study | None:
    """The networks that are also measured after the sums of their blocks."""
    if not (folder / "block_receptive_field.nc").is_file():
        return None
    return read(folder, "block_", ("objective",), ("test_iou", "generalization_gap"))


# What tables there are


def _common(study: Study) -> list[str]:
    """The tables that all tasks have."""
    target = TARGETS[study.targets[0]]
    given = " and ".join(map(_plural, study.groups))
    parts = [
        f"## What the epoch alone tells of {target}",
        _epoch(study),
        "## Beyond the epoch",
        f"Partial correlations with {target}: Pearson's, of what linear regressions on log epoch (and dummies of the "
        f"{given}) leave of both. R² is that of a linear model on log epoch and {given}, and what the measure adds.",
        _beyond_epoch(study),
    ]
    for group in study.groups:
        parts += [f"## Within each {_singular(group)}", _by(study, group)]
    return [
        *parts,
        "## By epoch",
        _by(study, "epoch"),
        f"## Layer by layer: Pearson with {target}",
        _by_layer(study),
        "## Sums of squares",
        "Shares of the total sum of squares between training runs, between the epochs that all runs have, and the "
        "rest.",
        _shares(study),
    ]


def _models(study: Study) -> str:
    ds, main = study.any, study.values(study.targets[0])
    rows = [["models", str(ds.sizes["model"])]]
    rows += [[_plural(group), ", ".join(dict.fromkeys(study.labels(group)))] for group in study.groups]
    rows += [
        ["training runs", str(len(set(study.runs)))],
        ["epochs", f"{int(ds['epoch'].min())} to {int(ds['epoch'].max())}"],
        ["seeds", ", ".join(map(str, study.seeds))],
        ["layers", ", ".join(study.layers)],
        [
            "vectors per layer",
            ", ".join(str(int(n)) for n in study.results["receptive_field"]["vectors_test"].values[0]),
        ],
    ]
    for target in dict.fromkeys([*study.targets, "train_" + study.targets[0].removeprefix("test_")]):
        if target in ds.coords:
            values = study.values(target)
            low, middle, high = np.nanquantile(values, [0, 0.5, 1])
            name = TARGETS.get(target, target.replace("_", " ").replace("iou", "IoU").replace("r2", "R²"))
            rows.append([f"{name}: least, median, largest", f"{_number(low)}, {_number(middle)}, {_number(high)}"])
    best = int(np.nanargmax(main))
    rows.append(["best model", f"{ds['model'].values[best]} ({_number(main[best])})"])
    for name, measure in study.measures:
        status = study.results[name][f"{measure}_status"].values.astype(str)
        missing = int((~np.isfinite(study.results[name][measure].values)).sum())
        notes = sum(_has_note(text) for text in status.flat)
        if missing or notes:
            text = f"{missing} of {status.size} without a value, {notes} with a note"
            rows.append([f"{EXTRACTORS[name]}, {MEASURES[measure]}", text])
    return _table(["", ""], rows, words=2)


def _has_note(status: str) -> bool:
    """Whether there is more to say of a value than that the output is read before a sum, as in all blocks."""
    _, _, notes = status.partition("note: ")
    return any(not text.startswith("the output is read before") for text in notes.split("; ") if text)


def _readings(studies: dict[str, Study]) -> str:
    """The paper's Table 1 and ours, for each reading of it: a column a measure."""
    measures = list(dict.fromkeys(measure for study in studies.values() for _, measure in study.measures))
    header = ["taps", "average", "layers", "features", *(MEASURES[measure] for measure in measures)]
    paper = {name: [PAPER[name, column(measure)] for measure in measures] for name in EXTRACTORS}
    rows = _three_rows(["the paper", "", ""], paper)
    for taps, study in studies.items():
        y = study.values(study.targets[0])
        for reading in READINGS:
            for inner in (False, True):
                found = {
                    name: [_pearson(study.reduced(name, measure, reading, inner), y) for measure in measures]
                    for name in study.extractors
                }
                rows += _three_rows([taps, reading, _inner(study) if inner else "all"], found)
    return _table(header, rows, words=4)


def _three_rows(names: list[str], found: dict[str, list[float]]) -> list[list[str]]:
    """A row for each extractor, and the gain of the second over the first in percent where their signs agree."""
    rows = [[*names, readable, *map(_number, found[name])] for name, readable in EXTRACTORS.items() if name in found]
    if len(rows) < len(EXTRACTORS):
        return rows
    first, second = (np.array(found[name]) for name in EXTRACTORS)
    better = np.where(first * second > 0, 100 * (second / first - 1), math.nan)
    return [*rows, [*names, "absolute improvement", *("–" if math.isnan(x) else f"{x:+.1f} %" for x in better)]]


def _table_1(study: Study) -> str:
    header = ["features", "measure", "paper", "average", "layers", "Pearson", "models", "runs", "Spearman", "n"]
    rows = []
    for extractor, measure in study.measures:
        for reading in READINGS:
            for inner in (False, True):
                x = study.reduced(extractor, measure, reading, inner)
                found = correlation(x, study.values(study.targets[0]), study.runs)
                names = [EXTRACTORS[extractor], MEASURES[measure], _number(PAPER[extractor, column(measure)]), reading]
                rows.append([*names, _inner(study) if inner else "all", *_coefficients(found)])
    return _table(header, rows, words=2)


def _weights(study: Study) -> str:
    rows = []
    for power, name in ((1, "‖W‖"), (-1, "1/‖W‖")):
        for inner in (False, True):
            found = correlation(study.weights(power, inner), study.values(study.targets[0]), study.runs)
            rows.append([name, _inner(study) if inner else "all", *_coefficients(found)])
    return _table(["mean of", "layers", "Pearson", "models", "runs", "Spearman", "n"], rows, words=2)


def _large(study: Study, large: xr.Dataset) -> list[str]:
    """What a larger sample of vectors changes, for the networks that have both."""
    few = study.results["receptive_field"].sel(model=large["model"].values)
    wide = (few["vectors_test"] != large["vectors_test"]).values[0]
    counts = [int(ds["vectors_test"].values[0][wide].max()) for ds in (few, large)]
    rows = []
    for measure in MEASURES:
        if measure in large:
            pair = [ds[measure].values[:, wide] for ds in (few, large)]
            agree = [float(pearson(a, b)) for a, b in zip(*(values.T for values in pair), strict=True)]
            rows.append([MEASURES[measure], _number(min(agree), 4), _number(float(np.median(agree)), 4)])
    text = (
        f"{large.sizes['model']} networks with at most {counts[0]} and with {counts[1]} vectors in each layer: Pearson "
        f"correlation of the two, over networks, in the {int(wide.sum())} layers that differ."
    )
    return [text, _table(["measure", "smallest", "median"], rows, words=1)]


def _elsewhere(few: Study, shifted: Study) -> list[str]:
    """Correlations with the scores on the test cases and on the shifted ones."""
    iou, elsewhere = (study.values("test_iou") for study in (few, shifted))
    gap, drop = few.values("generalization_gap"), iou - elsewhere
    columns = [
        ("test IoU", few, iou),
        ("gap", few, gap),
        ("shifted IoU", few, elsewhere),
        ("IoU lost", few, drop),
        ("shifted IoU", shifted, elsewhere),
        ("IoU lost", shifted, drop),
    ]
    others = {name: shifted.values(f"{name}_iou") for name in OTHER_SHIFTS}
    columns += [(f"IoU, {name}", few, y) for name, y in others.items()]
    header = ["features", "measure"]
    for name, study, _ in columns:
        header += [f"{name}, {'shifted' if study is shifted else 'test'} cases", "runs"]
    header += ["shifted IoU given log epoch and groups, shifted cases", "runs", "shifted IoU, test cases, Spearman"]
    rows = []
    for extractor, measure in few.measures:
        cells = []
        for _, study, y in columns:
            found = correlation(study.reduced(extractor, measure), y, study.runs)
            cells += [_number(found.pearson), _interval(found.runs)]
        left, interval = partial_over_runs(shifted.reduced(extractor, measure), elsewhere, few.known, few.runs)
        by_rank = correlation(few.reduced(extractor, measure), elsewhere, few.runs).spearman
        names = [EXTRACTORS[extractor], MEASURES[measure]]
        rows.append([*names, *cells, _number(left), _interval(interval), _number(by_rank)])
    for name, x in (("log epoch", np.log(few.values("epoch"))), ("training cases", np.log(few.values("train_cases")))):
        cells = []
        for _, study, y in columns:
            found = correlation(x, y, study.runs)
            cells += [_number(found.pearson), _interval(found.runs)]
        rows.append(["–", name, *cells, "–", "–", _number(correlation(x, elsewhere, few.runs).spearman)])
    spread = [("test IoU", iou), ("shifted IoU", elsewhere), ("IoU lost", drop), ("gap", gap)]
    spread += [(f"IoU, {name}", y) for name, y in others.items()]
    quantiles = [[name, *(_number(x) for x in np.quantile(y, [0, 0.25, 0.5, 0.75, 1]))] for name, y in spread]
    return [
        "The measures are taken on the test cases and on the shifted test cases, whose images have noise; the gap is "
        "that of the test cases, and “IoU lost” is what the noise costs. Two other shifts of the test cases are scored "
        "but not measured: another contrast, and half the resolution.",
        _table(["", "least", "quarter", "median", "three quarters", "largest"], quantiles, words=1),
        _table(header, rows, words=2),
    ]


def _classifiers(results: dict[tuple[str, str], xr.Dataset]) -> list[str]:
    """Correlations of averages over the last three and over all layers with the accuracy of classifiers."""
    header = ["networks", "features", "measure", "layers", "with test accuracy", "models", "with the gap", "models"]
    rows = []
    for (family, extractor), ds in results.items():
        targets = [np.asarray(ds[name].values, dtype=np.float64) for name in ("test_accuracy", "generalization_gap")]
        for layers, aggregator in (("last 3", LastK(3)), ("all", Frobenius())):
            averaged = genmeasures.aggregate(ds, aggregator)
            for measure in (measure for measure in MEASURES if measure in averaged):
                x = np.asarray(averaged[measure].values, dtype=np.float64)
                cells = []
                for y in targets:
                    found = correlation(x, y, ds["model"].values.astype(str))
                    cells += [_number(found.pearson), _interval(found.models)]
                rows.append([FAMILIES[family], EXTRACTORS[extractor], MEASURES[measure], layers, *cells])
    accuracy = [
        f"{FAMILIES[family]}: {ds.sizes['model']} networks of {ds.sizes['layer']} layers, test accuracy "
        f"{_number(float(ds['test_accuracy'].min()))} to {_number(float(ds['test_accuracy'].max()))}, gap "
        f"{_number(float(ds['generalization_gap'].min()))} to {_number(float(ds['generalization_gap'].max()))}."
        for (family, extractor), ds in results.items()
        if extractor == next(iter(EXTRACTORS))
    ]
    return [" ".join(accuracy), _table(header, rows, words=4)]


def _roughness(table: pd.DataFrame) -> list[str]:
    """Pearson's correlations of roughness, averaged over groups of layers, by the choices in roughness.csv."""
    encoder = table["layer_name"].str.startswith("encoder")
    parts = {"all layers": table["layer"] > 0, "encoder": encoder, "decoder and head": ~encoder}
    rows = []
    for choice, of_choice in table.groupby("choice", sort=False):
        for measure in ("roughness", "roughness_projected"):
            cells = []
            for chosen in parts.values():
                kept = of_choice[chosen.loc[of_choice.index]].dropna(subset=[measure])
                weighed = kept.assign(product=kept["weight_norm"] * kept[measure])
                by_model = weighed.groupby("model").agg({"product": "sum", "weight_norm": "sum", "test_iou": "first"})
                value = (by_model["product"] / by_model["weight_norm"]).to_numpy()
                runs = by_model.index.str.split("_epoch").str[0].to_numpy()
                found = correlation(value, by_model["test_iou"].to_numpy(), runs)
                cells += [_signed(found.pearson), _interval(found.models), str(found.n)]
            rows.append([str(choice), MEASURES[measure], *cells])
    header = ["", ""]
    for name in parts:
        header += [name, "models", "n"]
    epochs = ", ".join(map(str, sorted(table["epoch"].unique())))
    text = (
        f"Receptive field, {table['model'].nunique()} checkpoints (epochs {epochs}), Frobenius-weighted over these "
        "layers: Pearson with test IoU. Values of the Calinski–Harabasz index and of the silhouette rise where "
        "clusters are better separated, those of Davies–Bouldin fall."
    )
    return [text, _table(header, rows, words=2)]


def _correlations(study: Study, target: str) -> str:
    header = ["features", "measure", "layers", "Pearson", "models", "runs", "Spearman", "n"]
    rows = []
    for extractor, measure in study.measures:
        for inner in (False, True):
            x = study.reduced(extractor, measure, DEFAULT, inner)
            found = correlation(x, study.values(target), study.runs)
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
    given = " and ".join(map(_singular, study.groups))
    header = ["features", "measure", "Pearson", "given log epoch", "runs", f"given log epoch and {given}"]
    header += ["runs", "R² without", "R² added"]
    y, runs = study.values(study.targets[0]), study.runs
    rows = []
    for extractor, measure in study.measures:
        x = study.reduced(extractor, measure)
        cells = [_number(correlation(x, y, runs).pearson)]
        for known in (study.known[:, :1], study.known):
            value, interval = partial_over_runs(x, y, known, runs)
            cells += [_number(value), _interval(interval)]
        used = np.isfinite(x) & np.isfinite(y)
        explained = variance_explained(y[used], study.known[used], x[used])
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
        columns = {str(name): study.labels(factor) == name for name in dict.fromkeys(study.labels(factor))}
    y = study.values(study.targets[0])
    measured = [(EXTRACTORS[e], MEASURES[m], study.reduced(e, m)) for e, m in study.measures]
    if factor != "epoch":
        measured.append(("–", "log epoch", np.log(study.values("epoch"))))
    rows = []
    for features, measure, x in measured:
        found = [correlation(x[chosen], y[chosen], study.runs[chosen]) for chosen in columns.values()]
        rows.append([features, measure, *(f"{_number(one.pearson)} {_interval(one.models)}" for one in found)])
    return _table(["features", "measure", *columns], rows, words=2)


def _by_layer(study: Study) -> str:
    header = ["layer", *(f"{EXTRACTORS[e]}: {MEASURES[m]}" for e, m in study.measures)]
    y = study.values(study.targets[0])
    rows = []
    for place, name in enumerate(study.layers):
        found = [_signed(_pearson(study.by_layer(e, m)[:, place], y)) for e, m in study.measures]
        rows.append([f"{place + 1} {name}", *found])
    return _table(header, rows, words=1)


def _shares(study: Study) -> str:
    epochs = [set(study.values("epoch")[study.runs == run]) for run in set(study.runs)]
    shared = np.isin(study.values("epoch"), sorted(set.intersection(*epochs)))
    named: list[tuple[str, Floats]] = [(TARGETS[target], study.values(target)) for target in study.targets]
    named += [(f"{EXTRACTORS[e]}, {MEASURES[m]}", study.reduced(e, m)) for e, m in study.measures]
    rows = []
    for name, values in named:
        found = two_way(values[shared], study.runs[shared], study.values("epoch")[shared])
        rows.append([name, *(_number(part) for part in found)])
    return _table(["of", "between runs", "between epochs", "rest"], rows, words=1)


# Parts of tables


_GROUPS = {"objective": ("objective", "objectives"), "train_cases": ("number of training cases", "training cases")}


def _singular(group: str) -> str:
    return _GROUPS[group][0]


def _plural(group: str) -> str:
    return _GROUPS[group][1]


def _inner(study: Study) -> str:
    return f"2–{len(study.layers) - 1}"


def _pearson(x: Floats, y: Floats) -> float:
    used = np.isfinite(x) & np.isfinite(y)
    return float(pearson(x[used], y[used]))


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
