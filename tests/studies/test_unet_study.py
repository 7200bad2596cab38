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
from hypothesis import given, settings
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


@settings(deadline=None)  # the first example is slow on a busy machine
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
        "vectors_test": (by_layer, np.full((models, layers), 198.0)),
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


def averaged(values: Any, weights: Any, reading: str) -> Any:
    readings = {
        "Σwm/Σw": (values * weights).sum(1) / weights.sum(1),
        "Σwm/L": (values * weights).mean(1),
        "Σ(m/w)/Σ(1/w)": (values / weights).sum(1) / (1 / weights).sum(1),
        "Σ(m/w)/L": (values / weights).mean(1),
    }
    return readings[reading]


def test_table_1_has_the_correlations_of_each_average(folder: Path, tables: str) -> None:
    rows = cells(tables, "Table 1 with intervals")
    assert len(rows) == 2 * len(study.MEASURES) * 4 * 2
    results = {extractor: load(folder / f"{extractor}.nc") for extractor in study.EXTRACTORS}
    counts = np.random.default_rng(0).multinomial(18, np.full(18, 1 / 18), size=1000)
    drawn = np.array([np.repeat(np.arange(18), row) for row in counts])
    for features, measure, paper, reading, layers, coefficient, models, _, rank, n in rows:
        extractor = next(name for name, readable in study.EXTRACTORS.items() if readable == features)
        name = next(name for name, readable in study.MEASURES.items() if readable == measure)
        ds = results[extractor]
        chosen = {"all": slice(None), "2–4": slice(1, 4)}[layers]
        x = averaged(*(ds[v].values[:, chosen] for v in (name, "weight_norm")), reading)
        assert float(coefficient) == pytest.approx(scipy.stats.pearsonr(x, ds.test_iou).statistic, abs=5.1e-4)
        assert float(rank) == pytest.approx(scipy.stats.spearmanr(x, ds.test_iou).statistic, abs=5.1e-4)
        assert float(paper) == study.PAPER[extractor, name if name == "davies_bouldin" else name.split("_")[0]]
        assert n == "18"
        if (extractor, layers, reading) == ("whole_tensor", "all", "Σwm/Σw"):  # another order gives other resamples
            resampled = scipy.stats.pearsonr(x[drawn], ds.test_iou.values[drawn], axis=1).statistic
            low, high = np.quantile(resampled, [0.025, 0.975])
            assert models == f"[{low:.2f}, {high:.2f}]"


def test_table_1_has_the_third_row_of_the_paper(tables: str) -> None:
    rows = cells(tables, "Table 1 in all readings")
    assert len(rows) == 3 * (1 + 4 * 2)
    paper = dict(zip(study.MEASURES, rows[2][4:], strict=True))
    # The paper prints 17.3, 25.5 and 35.6 %; 0.783 / 0.629 is 24.5 % more than 1.
    assert [paper[name] for name in ("davies_bouldin", "roughness", "confidence")] == ["+17.3 %", "+24.5 %", "+35.6 %"]
    for start in range(3, len(rows), 3):
        tensors, pixels, better = (row[4:] for row in rows[start : start + 3])
        for one, two, percent in zip(tensors, pixels, better, strict=True):
            if float(one) * float(two) < 0:
                assert percent == "–"
                continue
            first, second = abs(float(one)), abs(float(two))
            expected = 100 * (second / first - 1)
            tolerance = 100 * (second + 5e-4) / (first - 5e-4) - 100 * second / first + 0.06
            assert float(percent.removesuffix(" %")) == pytest.approx(expected, abs=tolerance)


def test_the_weights_alone_are_correlated(folder: Path, tables: str) -> None:
    ds = load(folder / "whole_tensor.nc")
    for name, layers, coefficient, *_ in cells(tables, "The weights alone"):
        norms = ds.weight_norm.values[:, {"all": slice(None), "2–4": slice(1, 4)}[layers]]
        x = (norms if name == "‖W‖" else 1 / norms).mean(1)
        assert float(coefficient) == pytest.approx(scipy.stats.pearsonr(x, ds.test_iou).statistic, abs=5.1e-4)


def test_layers_are_correlated_one_by_one(folder: Path, tables: str) -> None:
    rows = cells(tables, "Layer by layer")
    assert [row[0] for row in rows] == [f"{n + 1} layer{n}" for n in range(5)]
    ds = load(folder / "whole_tensor.nc")
    expected = scipy.stats.pearsonr(ds.davies_bouldin.values[:, 3], ds.test_iou).statistic
    assert float(rows[3][1]) == pytest.approx(expected, abs=5.1e-4)


def test_larger_samples_are_compared_network_by_network(folder: Path) -> None:
    large = made_up(1).isel(model=slice(None, None, 3))
    large["roughness"] = large.roughness + 0.1 * np.random.default_rng(3).standard_normal(large.roughness.shape)
    large = large.assign_coords(vectors_test=large.vectors_test * np.array([4, 1, 1, 1, 4]))
    text, table = report._large(report.segmentation(folder), large)
    assert "6 networks with at most 198 and with 792 vectors" in text
    found = {row[0]: row[1:] for row in cells("## x\n" + table + "\n", "x")}
    assert found["Davies–Bouldin"] == ["1.0000", "1.0000"]
    few = load(folder / "receptive_field.nc").isel(model=slice(None, None, 3))
    agree = [scipy.stats.pearsonr(few.roughness[:, n], large.roughness[:, n]).statistic for n in (0, 4)]
    assert [float(x) for x in found["roughness"]] == pytest.approx([min(agree), np.mean(agree)], abs=5.1e-5)


def test_few_cases_are_judged_by_shifted_cases(folder: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number, name in enumerate(study.EXTRACTORS):
        (tmp_path / f"{name}.nc").write_bytes((folder / f"{name}.nc").read_bytes())
        for shift in ("", "shifted_"):
            ds = made_up(10 + number + 2 * len(shift))
            cases = ("model", np.resize([4, 8], ds.sizes["model"]))
            ds = ds.assign_coords(train_cases=cases, unshifted_iou=ds.test_iou)
            if shift:
                lost, contrast, resolution = np.random.default_rng(1).uniform(0, 0.3, (3, ds.sizes["model"]))
                others = {"contrast_iou": ("model", contrast), "resolution_iou": ("model", resolution)}
                ds = ds.assign_coords(test_iou=ds.test_iou - lost, **others)
                ds = ds.isel(model=rng.permutation(ds.sizes["model"]))
            save(ds, tmp_path / f"few_cases_{shift}{name}.nc")
    _, _, text = report._elsewhere(*report.few_cases(tmp_path))
    few, shifted = (load(tmp_path / f"few_cases_{shift}receptive_field.nc") for shift in ("", "shifted_"))
    shifted = shifted.sel(model=few.model)
    line = next(line for line in text.splitlines() if line.startswith("| receptive field | roughness |"))
    found = [cell.strip() for cell in line.strip("|").split("|")][2::2]
    averages = [(ds.roughness * ds.weight_norm).sum("layer") / ds.weight_norm.sum("layer") for ds in (few, shifted)]
    lost = few.test_iou - shifted.test_iou
    pairs = [(0, few.test_iou), (0, few.generalization_gap), (0, shifted.test_iou), (0, lost)]
    pairs += [(1, shifted.test_iou), (1, lost), (0, shifted.contrast_iou), (0, shifted.resolution_iou)]
    expected = [scipy.stats.pearsonr(averages[which], y).statistic for which, y in pairs]
    assert [float(x) for x in found[:8]] == pytest.approx(expected, abs=5.1e-4)
    by_rank = scipy.stats.spearmanr(averages[0], shifted.test_iou).statistic
    assert float(found[-1]) == pytest.approx(by_rank, abs=5.1e-4)


def test_classifiers_are_judged_by_their_last_layers(tmp_path: Path) -> None:
    results = {}
    for number, family in enumerate(study.FAMILIES):
        for name in study.EXTRACTORS:
            ds = made_up(20 + number).drop_vars(["test_iou", "train_iou"])
            ds = ds.assign_coords(test_accuracy=("model", np.linspace(0.3, 0.6, ds.sizes["model"])))
            save(ds, tmp_path / f"pgdl_{family}_{name}.nc")
            results[family, name] = ds
    found = report.classifiers(tmp_path)
    text, table = report._classifiers(found)
    assert "with fully connected layers: 18 networks of 5 layers, test accuracy 0.300 to 0.600" in text
    rows = cells("## x\n" + table + "\n", "x")
    (row,) = (r for r in rows if r[:4] == ["convolutions alone", "whole tensor", "Davies–Bouldin", "last 3"])
    ds = results["nin", "whole_tensor"]
    x = ds.davies_bouldin.values[:, -3:].mean(1)
    assert float(row[4]) == pytest.approx(scipy.stats.pearsonr(x, ds.test_accuracy).statistic, abs=5.1e-4)
    assert float(row[6]) == pytest.approx(scipy.stats.pearsonr(x, ds.generalization_gap).statistic, abs=5.1e-4)
    report.figures.classifiers(found, tmp_path / "pgdl.png")
    assert (tmp_path / "pgdl.png").read_bytes()[1:4] == b"PNG"


def test_roughness_is_averaged_over_the_layers_of_a_part() -> None:
    rng = np.random.default_rng(0)
    models = [f"dice_seed0_epoch{n:02d}" for n in range(1, 7)]
    rows = [
        {"model": model, "choice": "one", "layer": layer, "layer_name": name, "weight_norm": rng.uniform(1, 2)}
        | {"roughness": rng.uniform(1, 5), "roughness_projected": rng.uniform(1, 5)}
        | {"epoch": epoch, "test_iou": 0.1 * epoch + 0.05 * (epoch % 2)}
        for epoch, model in enumerate(models, 1)
        for layer, name in enumerate(("encoder.0.conv", "decoder.0.conv", "head"), 1)
    ]
    table = pd.DataFrame(rows)
    rows = cells("## x\n" + report._roughness(table)[1] + "\n", "x")
    assert [row[1] for row in rows] == ["roughness", "roughness, projected"]
    late = table[table.layer > 1]
    for row, name in zip(rows, ("roughness", "roughness_projected"), strict=True):
        products = late.assign(product=late[name] * late.weight_norm)
        sums = products.groupby("model")[["product", "weight_norm"]].sum()
        iou = table.groupby("model").test_iou.first()
        expected = scipy.stats.pearsonr(sums["product"] / sums["weight_norm"], iou).statistic
        assert float(row[8]) == pytest.approx(expected, abs=5.1e-4)


def test_figures_are_drawn_alike_each_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report.figures, "MAIN", ("roughness_projected",))  # each panel takes time
    drawn = {path.name: path.read_bytes() for path in report.draw(folder)}
    assert set(drawn) == {"scatter.png", "layers.png", "training.png", "layer_correlations.png"}
    report.figures.training(report.segmentation(folder), folder / "training.png")
    assert (folder / "training.png").read_bytes() == drawn["training.png"]


def test_notes_that_all_blocks_have_are_not_counted() -> None:
    read = "the output is read before its sum with others (tap: block reads it after that)"
    noted = ("ok", f"note: {read}", f"note: few points; {read}", "note: few points", "undefined: no points")
    assert [report._has_note(status) for status in noted] == [False, False, True, True, False]


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
    assert len(everything) == len(hyperparameters.settings()) * 5 == 9 * 5
    assert len(calls) == 4 + 1 + 7
    np.testing.assert_allclose(everything.roughness[:10], kept.roughness)
    hyperparameters.measured(*arguments)
    assert len(calls) == 12
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
