"""The validation split: labeled data like the training data that no model was trained on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
import yaml
from sklearn.metrics import accuracy_score
from torch import nn

import genmeasures
from genmeasures.cli.main import main
from genmeasures.errors import DataError, GenmeasuresWarning, OptionError, ResultError
from genmeasures.extractors import ReceptiveField
from genmeasures.interfaces import SPLITS, ModelData, ModelMeasure, Split, Task, TaskModel, Variable, split_of
from genmeasures.measures import Confidence, DaviesBouldin, Roughness
from genmeasures.results import load
from genmeasures.tasks import Checkpoints, DigitsCNN
from genmeasures.tasks.digits import split_digits, training_set
from genmeasures.tasks.digits_cnn import LEVELS

SMALL = ReceptiveField(cap=200, fit_cap=200)


def thirds(digits: Any) -> tuple[Any, Any, Any]:
    (x, y), test = digits
    return (x[:300], y[:300]), test, (x[300:], y[300:])


def measured(net: nn.Module, train: Any, test: Any, validation: Any = None, **options: Any) -> xr.Dataset:
    return genmeasures.measure({"net": net}, train, test, validation=validation, **{"extractor": SMALL, **options})


def test_splits_keep_their_order() -> None:
    """Seeds and samples of tasks go by the places of splits in it."""
    assert SPLITS == ("train", "test", "validation")
    assert [split_of("fit", [*splits]) for splits in (SPLITS, SPLITS[1:], SPLITS[2:])] == [*SPLITS]


def test_values_of_the_other_splits_stay_as_they_are(digits_net: nn.Module, digits: Any) -> None:
    train, test, validation = thirds(digits)
    without, with_it = (measured(digits_net, train, test, split) for split in (None, validation))
    added = {"vectors_validation", "measured_validation_accuracy", "measured_validation_labels"}
    assert set(with_it.variables) - set(without.variables) == added
    assert with_it.drop_vars({*added, "model_key"}).equals(without.drop_vars("model_key"))
    assert with_it.attrs["task_id"] == without.attrs["task_id"]
    # No measure reads validation data here, so that no pass goes over them.
    assert np.isnan(with_it["measured_validation_accuracy"].values).all()
    assert (with_it["vectors_validation"].values == 200).all()


@pytest.mark.parametrize("measure", [Confidence, Roughness, DaviesBouldin])
def test_measures_of_features_read_it(digits_net: nn.Module, digits: Any, measure: Any) -> None:
    train, test, validation = thirds(digits)
    whole = ReceptiveField(cap=100_000, fit_cap=200)  # samples of splits differ in their seeds
    options = {"extractor": whole, "layers": ["conv2", "fc1"]}
    ds = measured(digits_net, train, test, validation, measures=[measure(split="validation")], **options)
    as_test = measured(digits_net, train, validation, measures=[measure(split="test")], **options)
    name = measure.name
    assert np.isfinite(ds[name].values).all()
    np.testing.assert_allclose(ds[name].values, as_test[name].values, rtol=1e-6)


def test_its_accuracy_is_counted_in_a_pass_over_it(digits_net: nn.Module, digits: Any) -> None:
    train, test, validation = thirds(digits)
    ds = measured(digits_net, train, test, validation, measures=["roughness", Confidence(split="validation")])
    with torch.no_grad():
        predicted = digits_net(torch.from_numpy(validation[0])).argmax(1)
    expected = accuracy_score(validation[1], predicted)
    assert float(ds["measured_validation_accuracy"][0]) == float(ds["validation_accuracy"][0]) == expected
    assert int(ds["measured_validation_labels"][0]) == len(validation[1])
    assert float(ds["generalization_gap"][0]) == float(ds["train_accuracy"][0] - ds["test_accuracy"][0])


def test_without_other_data_fits_see_it(digits_net: nn.Module, digits: Any) -> None:
    *_, validation = thirds(digits)
    ds = measured(digits_net, None, None, validation, measures=[DaviesBouldin(split="validation"), "confidence"])
    assert set(ds["davies_bouldin_status"].values.ravel()) == {
        "note: fitted on the validation sample, since there are no training data"
    }
    assert set(ds["confidence_status"].values.ravel()) == {"undefined: confidence needs test data, and none are given"}


def test_a_measure_that_lacks_it_says_so(digits_net: nn.Module, digits: Any) -> None:
    train, test, _ = thirds(digits)
    measures = {"held": Confidence(split="validation"), "roughness": "roughness"}
    ds = measured(digits_net, train, test, measures=measures)
    assert set(ds["held_status"].values.ravel()) == {"undefined: confidence needs validation data, and none are given"}
    with pytest.raises(DataError, match="confidence needs validation data, and none are given"):
        measured(digits_net, train, test, measures=[Confidence(split="validation")])


class Sizes(ModelMeasure):
    """Reads every split."""

    name = "sizes"
    variables = (Variable("sizes", "number of inputs of all splits", dims=()),)

    def measure(self, model: nn.Module, layers: Any, data: ModelData) -> dict[str, Any]:
        return {"sizes": sum(len(inputs) for split in SPLITS for inputs, _ in data.batches(split))}


def test_measures_of_models_read_it(digits_net: nn.Module, digits: Any) -> None:
    ds = measured(digits_net, *thirds(digits), measures=[Sizes()])
    assert ds["sizes"].values == [300 + 300 + 200]


def test_targets_are_read_alike_in_all_splits(digits_net: nn.Module, digits: Any) -> None:
    """Floating-point classes are none where the validation targets are not."""
    (x, y), (x_test, y_test), (held, held_y) = thirds(digits)
    floats = [labels.astype(np.float32) for labels in (y, y_test, held_y)]
    measures = [DaviesBouldin(split=split).called(f"of_{split}") for split in SPLITS]
    notes = []
    for shift in (0.0, 0.5):
        data = (x, floats[0]), (x_test, floats[1]), (held, floats[2] + np.float32(shift))
        ds = measured(digits_net, *data, measures=measures, layers=["fc1"])
        notes.append([str(ds[f"of_{split}_status"].values[0, 0]) for split in SPLITS])
    assert set(notes[0]) == {"note: floating-point targets with integer values were read as class numbers"}
    why = "floating-point targets with integer values were read as continuous: the validation targets are not class"
    assert all(why in note for note in notes[1])


def test_its_coordinates_are_reserved(digits_net: nn.Module, digits: Any) -> None:
    train, test, _ = thirds(digits)
    for name in ("vectors_validation", "measured_validation_labels", "validation_accuracy"):
        with pytest.raises(OptionError, match=f"cannot be called '{name}'"):
            measured(digits_net, train, test, measures={name: "roughness"})
        if name != "validation_accuracy":
            model = TaskModel("net", lambda: digits_net, hparams={name: 1})
            with pytest.raises(ResultError, match=f"'{name}' is a reserved name"):
                genmeasures.measure(Offering([model], {"train": train}, ("train",)), extractor=SMALL)


# Tasks ----------------------------------------------------------------------------------------------------------


class Offering(Task):
    """Models with data of some splits; asked for another one, it fails."""

    name = "offering"

    def __init__(self, listed: Any, given: Any, splits: Any = None) -> None:
        self.listed, self.given = listed, given
        if splits is not None:
            self.splits = splits

    def models(self) -> Sequence[TaskModel]:
        return list(self.listed)

    def data(self, split: Split) -> Any:
        return self.given[split]


def test_a_task_offers_training_and_test_data_unless_it_says_otherwise(digits_net: nn.Module, digits: Any) -> None:
    train, test, validation = thirds(digits)
    model = TaskModel("net", lambda: digits_net, metrics={"validation_accuracy": 0.5})
    given = {"train": train, "test": test}
    ds = genmeasures.measure(Offering([model], given), extractor=SMALL)
    assert "vectors_validation" not in ds.coords
    assert float(ds["validation_accuracy"][0]) == 0.5
    measures = ["roughness", Confidence(split="validation")]
    for task, options in (
        (Offering([model], {**given, "validation": validation}, SPLITS), {}),
        (Offering([model], given), {"validation": validation}),
    ):
        with pytest.warns(GenmeasuresWarning, match=r"validation accuracy is .* claimed 0\.5"):
            ds = genmeasures.measure(task, extractor=SMALL, measures=measures, **options)
        assert "validation accuracy is" in str(ds["model_status"].values[0])


def test_digits_that_no_network_is_trained_on() -> None:
    task = DigitsCNN()
    assert task.splits == SPLITS
    x, y = task.data("validation")
    assert x.shape == (877, 1, 8, 8)
    assert x.dtype == np.float32
    (all_x, all_y), (x_test, _) = split_digits()
    assert len(all_x) + len(x_test) == 1797
    used = [training_set((all_x, all_y), size, 0.0)[0] for size in LEVELS["train_size"]]
    trained = max(used, key=len)
    assert len(trained) + len(x) == len(all_x)
    np.testing.assert_array_equal(np.concatenate([trained, x]), all_x)
    np.testing.assert_array_equal(y, all_y[len(trained) :])
    np.testing.assert_array_equal(task.data("train")[0], trained)


# The manifest ---------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, digits: Any) -> Path:
    """A folder with the manifest of a linear network, and data of three splits."""
    arrays: dict[str, Any] = {}
    for split, (x, y) in zip(SPLITS, thirds(digits), strict=True):
        arrays |= {f"x_{split}": x.reshape(len(x), -1), f"y_{split}": y}
    np.savez(tmp_path / "d.npz", **arrays)
    torch.manual_seed(0)
    torch.save(nn.Linear(64, 10).state_dict(), tmp_path / "net.pt")
    write(tmp_path)
    return tmp_path


def write(folder: Path, **model: Any) -> None:
    data = {split: {"npz": "d.npz", "x": f"x_{split}", "y": f"y_{split}"} for split in SPLITS}
    manifest = {
        "factory": "torch.nn.Linear",
        "factory_kwargs": {"in_features": 64, "out_features": 10},
        "data": data,
        "models": {"net": model},
    }
    (folder / "manifest.yaml").write_text(yaml.safe_dump(manifest))


def test_a_manifest_may_have_validation_data(folder: Path, digits: Any) -> None:
    task = Checkpoints(folder)
    assert task.splits == SPLITS
    np.testing.assert_array_equal(task.data("validation")[1], thirds(digits)[2][1])


def test_a_run_from_the_command_line_reads_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    write(folder, validation_accuracy=0.9)
    settings = ["measure=[confidence]", "measure.confidence.split=validation", "figures=false", "output=out"]
    assert main(["run", "task=checkpoints", "task.path=.", *settings]) == 0
    ds = load(next((folder / "out").glob("*.nc")))
    assert np.isfinite(ds["confidence"].values).all()
    assert int(ds["measured_validation_labels"][0]) == 200
    assert float(ds["validation_accuracy"][0]) == 0.9
    assert "validation accuracy is" in str(ds["model_status"].values[0])


def test_metrics_on_validation_data(folder: Path) -> None:
    write(folder, test_accuracy=0.7, validation_accuracy=0.8)
    (model,) = Checkpoints(folder).models()
    assert model.metrics == {"test_accuracy": 0.7, "validation_accuracy": 0.8}
    write(folder, validation_accuracy=0.8)
    assert Checkpoints(folder).models()[0].metrics == {"validation_accuracy": 0.8}
    write(folder, val_acc=0.8)
    with pytest.raises(OptionError, match=r"must start with train_, test_ or validation_: write validation_accuracy"):
        Checkpoints(folder).models()


@pytest.mark.parametrize(
    ("header", "metrics"),
    [
        (
            "train_accuracy,test_accuracy,validation_accuracy",
            ["train_accuracy", "test_accuracy", "validation_accuracy"],
        ),
        ("validation_accuracy", ["validation_accuracy"]),
        ("train_iou,test_iou,validation_iou,accuracy_x", ["train_iou", "test_iou", "validation_iou"]),
        ("train_size,validation_size", []),
    ],
)
def test_columns_of_a_table(folder: Path, header: str, metrics: list[str]) -> None:
    columns = header.split(",")
    (folder / "table.csv").write_text(f"model,{header}\nnet,{','.join(['0.5'] * len(columns))}\n")
    manifest = yaml.safe_load((folder / "manifest.yaml").read_text())
    metric = {"metric": "iou"} if "test_iou" in columns else {}
    (folder / "manifest.yaml").write_text(yaml.safe_dump({**manifest, **metric, "models": {"table": "table.csv"}}))
    (model,) = Checkpoints(folder).models()
    assert list(model.metrics) == metrics
    assert set(model.hparams) == set(columns) - set(metrics)


# Kept results ---------------------------------------------------------------------------------------------------


def test_kept_results_depend_on_validation_data(
    digits_net: nn.Module, digits: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, test, (x, y) = thirds(digits)
    options = {"measures": [Confidence(split="validation")], "keep": tmp_path}
    first = measured(digits_net, train, test, (x, y), **options)
    files = set(tmp_path.iterdir())
    again = measured(digits_net, train, test, (x, y), **options)
    assert set(tmp_path.iterdir()) == files
    for name in ("measured_validation_accuracy", "validation_accuracy", "vectors_validation", "confidence"):
        np.testing.assert_array_equal(again[name].values, first[name].values)
    other = measured(digits_net, train, test, (x[:100], y[:100]), **options)
    assert len(set(tmp_path.iterdir())) == len(files) + 1
    assert (other["confidence"].values != first["confidence"].values).any()
    # The models are the same, whatever they are validated on.
    assert other["model_content"].values.tolist() == first["model_content"].values.tolist()
