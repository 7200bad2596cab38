"""Tables, lines about failures, and the figure."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from matplotlib.image import imread
from rich.console import Console
from scipy.stats import pearsonr

from genmeasures.aggregators import Mean, aggregate
from genmeasures.errors import ResultError
from genmeasures.judging import judge
from genmeasures.report import failures, markdown_table, mostly_failed, plot_measures, render_table, skipped


def result(models: int = 20, layers: int = 4, measures: int = 2, metric: str = "accuracy") -> xr.Dataset:
    rng = np.random.default_rng(0)
    test = rng.uniform(0.7, 0.9, models)
    both = ("model", "layer")
    data: dict[str, object] = {}
    for i in range(measures):
        values = rng.normal(size=(models, layers)) - 10 * test[:, None]
        data[f"m{i}"] = (both, values, {"long_name": f"measure number {i}", "units": "1", "expected_accuracy": -1})
        data[f"m{i}_status"] = (both, np.full(values.shape, "ok", dtype=object))
    return xr.Dataset(
        data,
        coords={
            "model": [f"model{i}" for i in range(models)],
            "layer": np.arange(layers),
            "layer_name": (both, np.array([[f"conv{i}" for i in range(layers)]] * models, dtype=object)),
            "weight_norm": (both, np.ones((models, layers))),
            "model_status": ("model", np.full(models, "ok", dtype=object)),
            f"test_{metric}": ("model", test),
            "generalization_gap": ("model", 0.95 - test + 0.01 * rng.normal(size=models)),
        },
        attrs={"task": "toy", "metric": metric},
    )


def rendered(judged: pd.DataFrame, width: int = 160) -> str:
    out = io.StringIO()
    render_table(judged, Console(file=out, width=width))
    return out.getvalue()


@pytest.fixture
def judged() -> pd.DataFrame:
    """Two measures, one of them without a value, against one target; the figures are made up."""
    row = {"layer": pd.NA, "against": "test_accuracy", "n": 128, "excluded": 0, "status": "ok", "expected": 0}
    row |= {"agrees": "", "excluded_models": "", "grid_status": ""}
    given = {"pearson": (-0.714, -0.8, -0.58), "spearman": (0.5, 0.4, 0.6), "kendall": (-0.001, -0.2, 0.2)}
    numbers = {f"{k}{end}": v for k, vs in given.items() for end, v in zip(("", "_low", "_high"), vs, strict=True)}
    numbers |= {f"{k}_p": 0.01 for k in given}
    missing = {**dict.fromkeys(numbers, np.nan), "n": 1, "excluded": 127, "status": "undefined: too | few"}
    missing |= {"excluded_models": "m1, m2, …"}
    frame = pd.DataFrame([{**row, "measure": "roughness", **numbers}, {**row, "measure": "db", **missing}])
    frame = frame.astype({"layer": "Int64"})
    frame.attrs = {"models": 128, "aggregator": "Frobenius()", "confidence": 0.95}
    return frame


def test_markdown(judged: pd.DataFrame) -> None:
    assert markdown_table(judged) == (
        "| measure | against | Pearson | Spearman | Kendall | models | status |\n"
        "| --- | --- | ---: | ---: | ---: | ---: | --- |\n"
        "| roughness | test_accuracy | -0.71 [-0.80, -0.58] | 0.50 [0.40, 0.60] | 0.00 [-0.20, 0.20] | 128 | ok |\n"
        "| db | test_accuracy | – | – | – | 1 of 128 | undefined: too \\| few |\n"
    )
    assert markdown_table(judged.iloc[:0]) == ""


def test_table_shows_every_figure(judged: pd.DataFrame) -> None:
    text = rendered(judged)
    assert "Against test_accuracy, 128 models, Frobenius(), 95% bootstrap intervals" in text
    assert [" ".join(line.split()) for line in text.splitlines() if "roughness" in line] == [
        "roughness -0.71 [-0.80, -0.58] 0.50 [0.40, 0.60] 0.00 [-0.20, 0.20] 128"
    ]
    assert "undefined: too | few (db)" in text
    assert "excluded, without a value: m1, m2, … (db)" in text
    assert "undefined" not in rendered(judged.iloc[:1])


def test_a_narrow_table_keeps_its_intervals_whole(judged: pd.DataFrame) -> None:
    judged["measure"] = ["confidence_unweighted", "db"]
    text = rendered(judged.iloc[:1], width=80)
    assert max(map(len, text.splitlines())) <= 80
    for whole in ("confidence_unweighted", "-0.71", "[-0.80, -0.58]", "[0.40, 0.60]", "128"):
        assert whole in text


def test_one_table_a_target_and_layers_where_there_are_some() -> None:
    ds = result()
    aggregated = rendered(judge(aggregate(ds, Mean()), resamples=10))
    assert aggregated.count("Against") == 2
    assert aggregated.count("m0") == 2
    assert "layer" not in aggregated
    layered = judge(ds, "test_accuracy", resamples=10)
    assert rendered(layered).count("m0") == 4
    assert markdown_table(layered).splitlines()[3].startswith("| m0 | 1 | test_accuracy |")


def test_no_failures_no_lines() -> None:
    assert failures(result()) == []
    assert failures(aggregate(result(), Mean())) == []


def test_failures_are_grouped_and_counted() -> None:
    ds = result()
    ds["model_status"].values[:5] = [f"failed: out of memory at step {i}" for i in range(5)]
    ds["m0_status"].values[:5] = "failed: out of memory"
    ds["m0_status"].values[6:8, 1] = "undefined: one cluster"
    ds["m0_status"].values[9, :2] = "undefined: one cluster"
    ds["m0_status"].values[10, 0] = "note: slow"
    ds["m1_status"].values[10, 3] = "failed: no\nkernel"
    assert failures(ds) == [
        "5 of 20 models failed (model0, model1, model2, …), for example: out of memory at step 0",
        "m0: no value for 4 of 60 layers (layers conv0, conv1; 3 models: model6, model7, model9): one cluster",
        "m1: no value for 1 of 60 layers (layers conv3; 1 model: model10): no kernel",
    ]


def test_failures_of_an_aggregated_result() -> None:
    ds = result()
    ds["m0"].values[3] = np.nan
    ds["model_status"].values[4] = "failed: gone"
    assert failures(aggregate(ds, Mean())) == [
        "1 of 20 models failed (model4): gone",
        "m0: no value for 1 of 19 models (model3): no layer has a value",
    ]


def test_many_reasons_stay_few_lines() -> None:
    ds = result(models=100)
    ds["m0_status"].values[:] = [[f"undefined: reason {'x' * (i % 30)}"] * 4 for i in range(100)]
    lines = failures(ds)
    assert len(lines) == 6
    assert lines[-1] == "m0: no value for 320 more, for 25 other reasons"


def test_all_models_failed() -> None:
    ds = result(models=3)
    ds["model_status"].values[:] = "failed: no file"
    assert failures(ds) == ["3 of 3 models failed (model0, model1, model2): no file"]


@pytest.mark.parametrize(
    ("failed", "said"), [(0, ""), (2, ""), (3, "3 of 4 models failed"), (4, "4 of 4 models failed")]
)
def test_a_run_of_which_most_models_failed_is_told(failed: int, said: str) -> None:
    ds = result(models=4)
    ds["model_status"].values[:failed] = "failed: no file"
    assert mostly_failed(ds) == said


def test_skipped_layers_are_grouped_by_reason() -> None:
    ds = result(models=3)
    texts = [
        {"rnn": "a recurrent layer", "head": "never called", "aux": "never called"},
        {"rnn": "a recurrent layer", "head": "never\ncalled"},
        {"rnn": "a recurrent layer"},
    ]
    ds = ds.assign_coords(skipped_layers=("model", np.array([json.dumps(text) for text in texts], dtype=object)))
    assert skipped(ds) == [
        "not measured: 1 layer (rnn) of all models: a recurrent layer",
        "not measured: 2 layers (head, aux) of 2 of 3 models: never called",
    ]
    ds["skipped_layers"].values[:] = [json.dumps({f"l{i}": f"reason {i}" for i in range(8)}), "{}", ""]
    assert len(skipped(ds)) == 6
    assert skipped(ds)[-1] == "not measured: layers for 3 other reasons"


def test_the_accessor_sums_up_a_result() -> None:
    ds = result(models=5)
    ds = ds.assign_coords(skipped_layers=("model", np.array(['{"rnn": "a recurrent layer"}'] * 5, dtype=object)))
    ds["model_status"].values[4] = "failed: no file"
    ds["layer_name"].values[4] = ""
    for name in ("m0", "m1"):
        ds[name].values[4] = np.nan
        ds[f"{name}_status"].values[4] = ""
    ds["m1"].values[2, 1], ds["m1_status"].values[2, 1] = np.nan, "undefined: one cluster"
    ds["m1"].attrs["auxiliary"] = 1
    assert str(ds.genmeasures).splitlines() == [
        "5 models: 4 ok",
        "1 of 5 models failed (model4): no file",
        "4 layers, in every model",
        "not measured: 1 layer (rnn) of all models: a recurrent layer",
        "m0: 16 values",
        "m1: 15 values, 1 undefined (auxiliary)",
    ]
    ds["layer_name"].values[0, 3] = ""
    assert "3 to 4 layers per model" in str(ds.genmeasures)
    assert "not a result of genmeasures" in str(xr.Dataset().genmeasures)


def test_expected_signs_and_what_the_data_say() -> None:
    ds = result(models=30)  # m0 and m1 fall with accuracy, and grow with the gap
    ds["m0"].attrs |= {"expected_gap": 1}
    ds["m1"].attrs |= {"expected_accuracy": 1, "expected_gap": -1}
    ds["m2"] = (("model", "layer"), np.random.default_rng(1).normal(size=(30, 4)), {"expected_accuracy": -1})
    ds["m2_status"] = ds["m0_status"]
    judged = judge(aggregate(ds, Mean()))
    found = {(row.measure, row.against): (row.expected, row.agrees) for row in judged.itertuples()}
    assert found == {
        ("m0", "test_accuracy"): (-1, "yes"),
        ("m0", "generalization_gap"): (1, "yes"),
        ("m1", "test_accuracy"): (1, "no"),
        ("m1", "generalization_gap"): (-1, "no"),
        ("m2", "test_accuracy"): (-1, "open"),
        ("m2", "generalization_gap"): (0, ""),
    }
    text = rendered(judged)
    assert "− yes" in text
    assert "+ no" in text
    assert "− open" in text
    assert "expected: the sign that the source of the measure states" in text


def test_a_damaged_model_of_a_grid_is_told() -> None:
    ds = result(models=16)
    grid = np.array(list(np.ndindex(2, 2, 4)))
    ds = ds.assign_coords({name: ("model", grid[:, k]) for k, name in enumerate(("a", "b", "c"))})
    ds.attrs |= {"hparams": '["a", "b", "c"]', "test_size": 1000}
    whole = rendered(judge(aggregate(ds, Mean()), "generalization_gap"))
    assert "not complete" not in whole
    ds["m0"].values[5] = np.nan
    judged = judge(aggregate(ds, Mean()), "generalization_gap")
    text = rendered(judged)
    assert "PGDL" in text
    assert "excluded, without a value: model5 (m0)" in text
    assert "scores on the grid: undefined: the grid of hyperparameters is not complete: 1 of 16" in text
    assert "scores on the grid: not negated, as no expected sign with the gap is stated (m0, m1)" in text
    # All models of the grid but one measure's: its row has a dash.
    (row,) = (line.split() for line in text.splitlines() if line.split()[:1] == ["m0"])
    assert "–" in row
    ds["m1"].values[5] = np.nan
    assert "PGDL" in rendered(judge(aggregate(ds, Mean()), "generalization_gap"))


def image(path: Path) -> tuple[int, int]:
    """Height and width of a PNG that has something drawn on it."""
    pixels = imread(path)
    assert pixels[..., :3].std() > 0.01
    return pixels.shape[0], pixels.shape[1]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("models", [1, 2, 20])
def test_figure_of_few_and_many_models(tmp_path: Path, models: int) -> None:
    ds = result(models=models)
    plot_measures(ds, aggregate(ds, Mean()), tmp_path / "a.png")
    image(tmp_path / "a.png")


@pytest.mark.filterwarnings("error")
def test_figure_grows_with_the_measures(tmp_path: Path) -> None:
    sizes = []
    for measures in (1, 5, 10):
        ds = result(measures=measures, metric="iou")
        plot_measures(ds, aggregate(ds, Mean()), tmp_path / "a.png")
        sizes.append(image(tmp_path / "a.png"))
    (low, narrow), (still_low, wide), (high, still_wide) = sizes
    ds = ds.drop_vars("generalization_gap")  # a panel less
    plot_measures(ds, aggregate(ds, Mean()), tmp_path / "a.png")
    assert image(tmp_path / "a.png") == (high * 2 // 3, wide)
    assert low == still_low
    assert narrow < wide == still_wide
    assert high == 2 * low


@pytest.mark.filterwarnings("error")
def test_figure_with_what_is_missing(tmp_path: Path) -> None:
    """No value at all, some values, infinite ones, outliers, a value a model, some accuracies, none."""
    ds = result(models=60, measures=4)
    ds["m0"].values[:] = np.nan
    ds["m1"].values[:10] = np.nan
    ds["m2"].values[3, 2] = 1e9
    ds["m2"].values[4, 2] = np.inf
    ds["m3"].values[:] = 7.0
    ds["t"] = ("model", np.arange(60.0))
    ds["t_status"] = ("model", np.full(60, "ok", dtype=object))
    ds["test_accuracy"].values[:20] = np.nan
    plot_measures(ds, aggregate(ds, Mean()), tmp_path / "some.png")
    image(tmp_path / "some.png")
    ds = ds.drop_vars("test_accuracy")
    plot_measures(ds, aggregate(ds, Mean()), str(tmp_path / "none.png"))
    image(tmp_path / "none.png")


@pytest.mark.parametrize(("noise", "red"), [(0.0, True), (15.0, False)])
def test_titles_are_red_where_the_sign_is_the_other_one_beyond_chance(noise: float, red: bool) -> None:
    from matplotlib.figure import Figure

    from genmeasures.report.figures import _scatter

    x = np.arange(12.0)
    y = x + noise * (-1) ** x
    found = pearsonr(x, y)
    assert found.statistic > 0
    assert (found.pvalue < 0.05) == red
    ax = Figure().subplots()
    _scatter(ax, x, y, np.zeros((12, 4)), "accuracy", -1)
    assert (ax.title.get_color() == "firebrick") == red


def test_figure_that_cannot_be_written(tmp_path: Path) -> None:
    ds = result()
    with pytest.raises(ResultError, match=r"missing.a\.png: No such file"):
        plot_measures(ds, aggregate(ds, Mean()), tmp_path / "missing" / "a.png")
    bare = ds.drop_vars(["m0", "m1"])
    with pytest.raises(ResultError, match="no measure variable"):
        plot_measures(bare, aggregate(bare, Mean()), tmp_path / "a.png")
