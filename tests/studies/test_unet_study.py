"""The statistics and tables of the UNet study, and whether the committed tables are those of the committed results."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LinearRegression

from genmeasures.errors import ResultError
from genmeasures.judging import dummies, partial_pearson
from genmeasures.results import SCHEMA_VERSION, load, save

FOLDER = Path(__file__).parents[2] / "benchmarks" / "studies" / "unet"


def script(name: str) -> ModuleType:
    """A module of the study, which stands beside the pages and not in the package."""
    sys.path.insert(0, str(FOLDER))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(FOLDER))


analysis, study, report, hyperparameters = map(script, ("analysis", "study", "report", "hyperparameters"))


def correlated(seed: int, n: int) -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(seed)
    x, y, z = rng.standard_normal((3, n)) + rng.standard_normal((3, 2)) @ rng.standard_normal((2, n))
    return x, y, z


# Variance


@given(st.integers(0, 10**6))
def test_variance_explained_is_that_of_linear_regressions(seed: int) -> None:
    x, y, z = correlated(seed, 20)
    base = np.column_stack([z, dummies(np.repeat(["a", "b"], 10))])
    whole = np.column_stack([base, x])
    small, large = (LinearRegression().fit(given, y).score(given, y) for given in (base, whole))
    found = analysis.variance_explained(y, base, x)
    assert found.base == pytest.approx(small, abs=1e-9)
    assert found.base + found.added == pytest.approx(large, abs=1e-9)
    partial = float(partial_pearson(x, y, base))
    assert found.added == pytest.approx(partial**2 * (1 - small), abs=1e-9)


def test_variance_without_meaning_is_nan() -> None:
    x, y, z = correlated(0, 10)
    assert np.isnan(analysis.variance_explained(np.ones(10), z[:, None], x)).all()
    assert np.isnan(analysis.variance_explained(y[:3], z[:3, None], x[:3])).all()
    assert np.isnan(analysis.two_way(y, ["a"] * 4 + ["b"] * 6, list(range(10)))).all()


def test_sums_of_squares_of_two_factors() -> None:
    first, second = np.repeat(["a", "b"], 6), np.tile([1, 2, 3], 4)
    # ±3 between the first (9 · 12 = 108), −2, 0, 2 between the second (8 · 4 = 32), nothing else.
    exact = np.where(first == "a", 3.0, -3.0) + np.tile([-2.0, 0.0, 2.0], 4)
    assert analysis.two_way(exact, first, second) == pytest.approx((108 / 140, 32 / 140, 0), abs=1e-12)
    y = exact + np.random.default_rng(0).standard_normal(12)
    both = [dummies(factor) for factor in (first, second)]
    expected = [LinearRegression().fit(one, y).score(one, y) for one in both]
    assert analysis.two_way(y, first, second)[:2] == pytest.approx(expected, abs=1e-12)


# Resampling of runs


def test_whole_runs_are_resampled() -> None:
    x, y, z = correlated(1, 24)
    runs = np.repeat(["a", "b", "c"], [6, 8, 10])
    members = [np.flatnonzero(runs == name) for name in ("a", "b", "c")]
    counts = np.random.default_rng(0).multinomial(3, np.full(3, 1 / 3), size=1000)
    rows = [np.concatenate([of for of, k in zip(members, row, strict=True) for _ in range(k)]) for row in counts]
    expected = np.quantile([np.corrcoef(x[r], y[r])[0, 1] for r in rows], [0.025, 0.975])
    assert study.correlation(x, y, runs).runs[:2] == pytest.approx(expected, abs=1e-12)

    def partial(r: Any) -> float:
        left = [v[r] - np.polyval(np.polyfit(z[r], v[r], 1), z[r]) for v in (x, y)]
        return float(np.corrcoef(*left)[0, 1])

    value, interval = study.partial_over_runs(x, y, z[:, None], runs)
    assert value == pytest.approx(partial(np.arange(24)), abs=1e-12)
    assert interval[:2] == pytest.approx(np.quantile([partial(r) for r in rows], [0.025, 0.975]), abs=1e-9)
    assert np.isnan(study.correlation(x, y, np.full(24, "a")).runs[:2]).all()


def test_resamples_without_a_statistic_are_counted() -> None:
    low, high, dropped = analysis.percentile_interval(np.array([1.0, np.nan, 1.0, 1.0, np.nan]))
    assert (low, high, dropped) == (1.0, 1.0, 2)
    assert np.isnan(analysis.percentile_interval(np.full(3, np.nan))[:2]).all()


# Tables


def made_up(seed: int, objectives: tuple[str, ...] = ("mse", "dice", "bce"), epochs: int = 6) -> xr.Dataset:
    """A result as ``genmeasures.measure`` makes one of the task unet: objectives × epochs, 5 layers."""
    rng = np.random.default_rng(seed)
    models, layers = len(objectives) * epochs, 5
    by_layer = ("model", "layer")
    epoch = np.tile(np.arange(1, epochs + 1), len(objectives))
    iou = 0.3 + 0.08 * epoch + 0.02 * np.random.default_rng(9).standard_normal(models)
    names = [f"{objective}_seed0_epoch{e:02d}" for objective in objectives for e in range(1, epochs + 1)]
    texts = np.array([f"layer{number}.conv" for number in range(layers)], dtype=object)
    measures = {m: (by_layer, rng.standard_normal((models, layers)) - iou[:, None]) for m in study.MEASURES}
    status = {f"{m}_status": (by_layer, np.full((models, layers), "ok", dtype=object)) for m in study.MEASURES}
    coords = {
        "model": np.array(names, dtype=object),
        "layer": np.arange(layers),
        "layer_name": (by_layer, np.tile(texts, (models, 1))),
        "weight_norm": (by_layer, rng.uniform(1, 9, (models, layers))),
        "positions": (by_layer, np.tile([64.0, 16.0, 1.0, 16.0, 64.0], (models, 1))),
        "model_status": ("model", np.full(models, "ok", dtype=object)),
        "objective": ("model", np.repeat(np.array(objectives, dtype=object), epochs)),
        "epoch": ("model", epoch),
        "seed": ("model", np.zeros(models, dtype=int)),
        "test_iou": ("model", iou),
        "train_iou": ("model", iou + 0.01 * epoch),
        "generalization_gap": ("model", 0.01 * epoch),
    }
    attrs = {"schema_version": SCHEMA_VERSION, "metric": "iou", "test_size": 198}
    return xr.Dataset({**measures, **status}, coords, attrs)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("study")
    save(made_up(1), made / "receptive_field.nc")
    # Files may list the models in different orders.
    save(made_up(2).isel(model=slice(None, None, -1)), made / "whole_tensor.nc")
    return made


@pytest.fixture(scope="module")
def tables(folder: Path) -> str:
    return str(report.tables(folder))


def cells(text: str, heading: str) -> list[list[str]]:
    """The rows of the first table below a heading, without its first two lines."""
    below = text[text.index(f"## {heading}") :]
    table = re.search(r"(?m)(^\|.*\n)+", below)
    assert table is not None
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.group().splitlines()[2:]]


def test_table_1_has_the_correlations_of_the_weighted_means(folder: Path, tables: str) -> None:
    rows = cells(tables, "Table 1")
    assert len(rows) == 12
    for features, measure, paper, layers, coefficient, models, _, rank, n in rows:
        extractor = next(name for name, readable in study.EXTRACTORS.items() if readable == features)
        name = next(name for name, readable in study.MEASURES.items() if readable == measure)
        ds = load(folder / f"{extractor}.nc")
        chosen = {"all": slice(None), "2–4": slice(1, 4)}[layers]
        values, weights = (ds[v].values[:, chosen] for v in (name, "weight_norm"))
        x = (values * weights).sum(1) / weights.sum(1)
        assert float(coefficient) == pytest.approx(scipy.stats.pearsonr(x, ds.test_iou).statistic, abs=5.1e-4)
        assert float(rank) == pytest.approx(scipy.stats.spearmanr(x, ds.test_iou).statistic, abs=5.1e-4)
        assert float(paper) == study.PAPER[extractor, name]
        assert n == "18"
        if extractor == "whole_tensor" and layers == "all":  # the other file's order would give other resamples
            counts = np.random.default_rng(0).multinomial(18, np.full(18, 1 / 18), size=1000)
            drawn = [np.repeat(np.arange(18), row) for row in counts]
            low, high = np.quantile([np.corrcoef(x[r], ds.test_iou.values[r])[0, 1] for r in drawn], [0.025, 0.975])
            assert models == f"[{low:.2f}, {high:.2f}]"


def test_layers_are_correlated_one_by_one(folder: Path, tables: str) -> None:
    rows = cells(tables, "Layer by layer")
    assert [row[0] for row in rows] == [f"{n + 1} layer{n}" for n in range(5)]
    ds = load(folder / "whole_tensor.nc")
    expected = scipy.stats.pearsonr(ds.davies_bouldin.values[:, 3], ds.test_iou).statistic
    assert float(rows[3][1]) == pytest.approx(expected, abs=5.1e-4)


def test_the_deepest_layer_can_be_left_out_or_sampled_better(folder: Path, tables: str) -> None:
    ds = load(folder / "receptive_field.nc")
    others = [0, 1, 3, 4]
    mean = (ds.confidence * ds.weight_norm)[:, others].sum("layer") / ds.weight_norm[:, others].sum("layer")
    (row,) = (r for r in cells(tables, "Without the deepest") if r[:2] == ["receptive field", "confidence"])
    assert float(row[2]) == pytest.approx(scipy.stats.pearsonr(mean, ds.test_iou).statistic, abs=5.1e-4)

    more = made_up(5).isel(layer=[2], model=slice(None, None, 2)).assign_attrs(test_size=1584)
    known, joined, _ = report._sampling(report.segmentation(folder), more)[1::2]
    (per_layer,) = cells("## x\n" + known + "\n", "x")
    few = ds.isel(model=slice(None, None, 2))
    assert per_layer[0] == "3 layer2"
    for place, values in enumerate((few.davies_bouldin[:, 2], more.davies_bouldin[:, 0])):
        assert float(per_layer[1 + place]) == pytest.approx(
            scipy.stats.pearsonr(values, few.test_iou).statistic, abs=5.1e-4
        )
    values = few.confidence.values.copy()
    values[:, 2] = more.confidence.values[:, 0]
    mean = (values * few.weight_norm).sum("layer") / few.weight_norm.sum("layer")
    (row,) = (r for r in cells("## x\n" + joined + "\n", "x") if r[:2] == ["1584", "confidence"])
    assert float(row[2]) == pytest.approx(scipy.stats.pearsonr(mean, few.test_iou).statistic, abs=5.1e-4)


def test_roughness_is_averaged_over_the_layers_of_a_part() -> None:
    rng = np.random.default_rng(0)
    models = [f"dice_seed0_epoch{n:02d}" for n in range(1, 7)]
    rows = [
        {"model": model, "choice": "one", "layer": layer, "layer_name": name, "weight_norm": rng.uniform(1, 2)}
        | {"roughness": rng.uniform(1, 5), "epoch": epoch, "test_iou": 0.1 * epoch + 0.05 * (epoch % 2)}
        for epoch, model in enumerate(models, 1)
        for layer, name in enumerate(("encoder.0.conv", "decoder.0.conv", "head"), 1)
    ]
    table = pd.DataFrame(rows)
    (row,) = cells("## x\n" + report._roughness(table)[1] + "\n", "x")
    late = table[table.layer > 1]
    sums = late.assign(product=late.roughness * late.weight_norm).groupby("model")[["product", "weight_norm"]].sum()
    iou = table.groupby("model").test_iou.first()
    expected = scipy.stats.pearsonr(sums["product"] / sums["weight_norm"], iou).statistic
    assert float(row[5]) == pytest.approx(expected, abs=5.1e-4)


def test_figures_are_drawn_alike_each_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report.figures, "MAIN", ("roughness",))  # each panel takes time
    drawn = {path.name: path.read_bytes() for path in report.draw(folder)}
    assert set(drawn) == {"scatter.png", "layers.png", "training.png", "layer_correlations.png"}
    report.figures.training(report.segmentation(folder), folder / "training.png")
    assert (folder / "training.png").read_bytes() == drawn["training.png"]


def test_results_that_do_not_belong_together_are_refused(folder: Path, tmp_path: Path) -> None:
    save(made_up(1), tmp_path / "receptive_field.nc")
    with pytest.raises(ResultError, match=r"whole_tensor\.nc"):
        report.tables(tmp_path)
    save(made_up(2, epochs=5), tmp_path / "whole_tensor.nc")
    with pytest.raises(ResultError, match="different models"):
        report.tables(tmp_path)


# Settings of the measures


def test_settings_that_are_measured_are_not_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    def measure(model: Any, data: Any, setting: Any, cap: int) -> xr.Dataset:
        calls.append(setting)
        if len(calls) == 4:
            raise KeyboardInterrupt
        ds = made_up(len(calls)).isel(model=[0])
        return ds.assign_coords(channels=ds.weight_norm).assign_attrs(seconds=1.0)

    monkeypatch.setattr(hyperparameters, "_measure", measure)
    monkeypatch.setattr(hyperparameters, "network", lambda *_: (torch.nn.Identity(), {"test_iou": 0.5}))
    path = tmp_path / "measured.csv"
    arguments = (None, (None, None), [("dice", 0, 6)], 100, path)
    with pytest.raises(KeyboardInterrupt):
        hyperparameters.measured(*arguments)
    kept = pd.read_csv(path)
    assert len(kept) == 2 * 5  # the first call is not recorded
    everything = hyperparameters.measured(*arguments)
    assert len(everything) == len(hyperparameters.settings()) * 5 == 8 * 5
    assert len(calls) == 4 + 1 + 6
    np.testing.assert_allclose(everything.roughness[:10], kept.roughness)
    hyperparameters.measured(*arguments)
    assert len(calls) == 11
    text = hyperparameters.markdown(everything, None)
    setting = hyperparameters.Setting(components="all")
    mean = everything.roughness[everything.components == "all"].mean()
    assert f"| principal components | all | {mean:.3f} |" in text
    assert len(hyperparameters._rows(everything, setting)) == 5


# What is committed


def test_the_committed_tables_are_those_of_the_committed_results() -> None:
    needed = ["tables.md", *(f"{name}.nc" for name in study.EXTRACTORS)]
    if not all((FOLDER / name).is_file() for name in needed):
        pytest.skip("the study's results are not there: benchmarks/studies/unet/README.md says how they are made")
    numbers = re.compile(r"[-+]?\d+\.(\d+)")
    committed, now = (FOLDER / "tables.md").read_text(encoding="utf-8"), report.tables(FOLDER)
    assert numbers.sub("#", now) == numbers.sub("#", committed)
    for found, written in zip(numbers.finditer(now), numbers.finditer(committed), strict=True):
        # Other processors may round the last digit differently.
        assert float(found.group()) == pytest.approx(float(written.group()), abs=1.01 * 10.0 ** -len(written.group(1)))
