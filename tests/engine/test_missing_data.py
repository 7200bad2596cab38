"""One split, data without labels, or no data at all: what can be measured is, and the rest says why not."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from sklearn.decomposition import PCA
from torch import Tensor, nn

import genmeasures
from genmeasures.errors import DataError, OptionError
from genmeasures.extractors import ReceptiveField, WholeTensor
from genmeasures.interfaces import FeatureMeasure, Measure, ModelData, ModelMeasure, Pass, Undefined, Variable
from genmeasures.labelers import ClassLabel, Histogram
from genmeasures.measures import Confidence, DaviesBouldin, Roughness

SMALL = ReceptiveField(cap=200, fit_cap=200)
FITTED = "note: fitted on the test sample, since there are no training data"


def statuses(ds: xr.Dataset, name: str) -> set[str]:
    return {str(one) for one in ds[f"{name}_status"].values.ravel()}


class Spread(FeatureMeasure):
    """Mean over the test sample of the squared distance from the mean of the fitted sample, and of the projection."""

    name = "spread"
    variables = (Variable("spread", "spread"), Variable("explained", "variance of the projection"))
    passes = (Pass("fit", "vectors"), Pass("test", "vectors", "projected"))

    def start(self, layer: Any, generator: Any) -> None:
        self.sums: list[Tensor] = []
        self.mean: Tensor | None = None
        self.distances: list[Tensor] = []
        self.projected: list[Tensor] = []

    def update(self, batch: Any) -> None:
        if self.mean is None:
            self.sums.append(batch.vectors.double())
        else:
            self.distances.append((batch.vectors.double() - self.mean).square().sum(1))
            self.projected.append(batch.projected)
        assert batch.split == "test"

    def end_pass(self) -> None:
        if self.mean is None:
            self.mean = torch.cat(self.sums).mean(0)

    def compute(self) -> dict[str, float]:
        explained = torch.cat(self.projected).var(0, correction=0).sum()
        return {"spread": float(torch.cat(self.distances).mean()), "explained": float(explained)}


@pytest.mark.parametrize("extractor", [WholeTensor(components=3), WholeTensor(components=3, fit_cap=100)])
def test_what_is_fitted_is_fitted_on_the_test_sample(
    digits_net: nn.Module, digits: Any, extractor: WholeTensor
) -> None:
    x = digits[1][0]
    ds = genmeasures.measure([digits_net], test=(x,), measures=[Spread()], extractor=extractor, layers=["fc1", "fc2"])
    with torch.no_grad():
        hidden: list[Tensor] = []
        handle = digits_net.fc1.register_forward_hook(lambda m, i, out: hidden.append(out.relu()))  # type: ignore[operator, union-attr]
        outputs = digits_net(torch.from_numpy(x)).double().numpy()
        handle.remove()
    for place, features in enumerate((hidden[0].double().numpy(), outputs)):
        if extractor.fit_cap >= len(x):
            expected = features.var(0).sum(), PCA(3).fit(features).explained_variance_.sum() * (1 - 1 / len(x))
            np.testing.assert_allclose(ds["spread"].values[0, place], expected[0], rtol=1e-5)
            np.testing.assert_allclose(ds["explained"].values[0, place], expected[1], rtol=1e-5)
        else:  # of a part of it, the mean of the whole is another
            assert features.var(0).sum() < ds["spread"].values[0, place] < 1.1 * features.var(0).sum()
    assert statuses(ds, "spread") == {FITTED}


def test_unlabeled_new_data_alone(digits_net: nn.Module, digits: Any, caplog: pytest.LogCaptureFixture) -> None:
    x = digits[1][0]
    ds = genmeasures.measure({"net": digits_net}, test=x, extractor=SMALL)
    for name in ("roughness", "confidence", "confidence_unweighted"):
        assert np.isfinite(ds[name].values).all()
        assert all(FITTED.removeprefix("note: ") in status for status in statuses(ds, name))
    assert np.isnan(ds["davies_bouldin"].values).all()
    assert statuses(ds, "davies_bouldin") == {"undefined: davies_bouldin needs train data, and none are given"}
    assert [r.message for r in caplog.records if r.levelno >= logging.WARNING] == [
        "davies_bouldin has no values: it needs train data, and none are given"
    ]
    assert np.isnan(ds["vectors_train"].values).all()
    assert (ds["vectors_test"].values == 200).sum() > 0


def test_fitting_on_either_split_is_the_same_where_both_are_the_same_data(digits_net: nn.Module, digits: Any) -> None:
    """All inputs are fitted on, with clusters by label and one component each: nothing is drawn at random."""
    x = digits[1]
    options: dict[str, Any] = {
        "measures": [Confidence(ClassLabel(), components=1)],
        "extractor": WholeTensor(),
        "layers": ["fc1", "fc2"],
    }
    alone = genmeasures.measure([digits_net], None, x, **options)
    both = genmeasures.measure([digits_net], x, x, **options)
    np.testing.assert_allclose(alone["confidence"], both["confidence"], rtol=1e-6)
    assert np.isfinite(alone["confidence"].values).all()
    own = [status.removeprefix("note: ") for status in both["confidence_status"].values[0]]
    assert [FITTED in f"note: {one}" for one in own] == [False, False]
    assert all(str(one).endswith(FITTED.removeprefix("note: ")) for one in alone["confidence_status"].values[0])


def test_labels_of_the_test_data_serve_too(digits_net: nn.Module, digits: Any) -> None:
    _, test = digits
    measures = [DaviesBouldin(split="test"), Roughness(labeler=Histogram(bins=4))]
    ds = genmeasures.measure([digits_net], None, test, measures=measures, extractor=SMALL)
    both = genmeasures.measure([digits_net], test, test, measures=measures, extractor=SMALL)
    np.testing.assert_allclose(ds["davies_bouldin"], both["davies_bouldin"], rtol=0.05)
    assert statuses(ds, "davies_bouldin") == {FITTED}
    assert np.isfinite(ds["roughness"].values).all()
    assert float(ds["measured_test_accuracy"][0]) == float(both["measured_test_accuracy"][0])
    pixel = genmeasures.measure([digits_net], None, test, measures=[DaviesBouldin(split="test", space="pixel")])
    assert statuses(pixel, "davies_bouldin") == {"ok"}


def test_training_data_alone(digits_net: nn.Module, digits: Any) -> None:
    train, test = digits
    ds = genmeasures.measure([digits_net], train, extractor=SMALL)
    whole = genmeasures.measure([digits_net], train, test, extractor=SMALL)
    np.testing.assert_allclose(ds["davies_bouldin"], whole["davies_bouldin"], rtol=1e-6)
    assert statuses(ds, "roughness") == {"undefined: roughness needs test data, and none are given"}
    assert statuses(ds, "confidence") == {"undefined: confidence needs test data, and none are given"}
    assert float(ds["measured_train_accuracy"][0]) == float(whole["measured_train_accuracy"][0])


@pytest.mark.parametrize(
    ("measures", "data", "reason"),
    [
        (["davies_bouldin"], ["test"], "davies_bouldin needs train data"),
        (["roughness", "confidence"], ["train"], "roughness needs test data, .*; confidence needs test data"),
        (["davies_bouldin"], ["train"], "davies_bouldin needs labels, and the train data have no targets"),
        (["davies_bouldin", "roughness"], [], "there are no data: pass train, test or both .*davies_bouldin needs"),
        ([Roughness(labeler=Histogram())], ["test"], "with the labeler 'histogram' needs targets, and the test"),
    ],
)
def test_a_run_without_any_value_is_an_error(
    measures: list[Any], data: list[str], reason: str, digits_net: nn.Module, digits: Any
) -> None:
    with pytest.raises(DataError, match=reason):
        genmeasures.measure([digits_net], **dict.fromkeys(data, digits[0][0]), measures=measures)


class Spectral(ModelMeasure):
    """Reads weights alone, unless it is told to read data."""

    name = "spectral"
    variables = (Variable("spectral", "spectral norm"), Variable("total", "sum", dims=()))

    def __init__(self, reads: str = "") -> None:
        self.reads = reads

    def measure(self, model: nn.Module, layers: Any, data: ModelData) -> dict[str, Any]:
        if self.reads:
            data.sample(self.reads, 3)  # type: ignore[arg-type]
        weights = [model.get_submodule(layer.name).weight.detach().flatten(1) for layer in layers]
        norms = [float(torch.linalg.matrix_norm(weight.double(), 2)) for weight in weights]
        return {"spectral": norms or Undefined("no layers"), "total": sum(norms)}


def measured(net: nn.Module, *measures: Measure, **options: Any) -> xr.Dataset:
    return genmeasures.measure({"net": net}, measures=measures, **options)


def test_measures_of_weights_need_no_data(digits_net: nn.Module, digits: Any) -> None:
    before = {name: value.clone() for name, value in digits_net.state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ds = measured(digits_net, Spectral())
    with_data = measured(digits_net, Spectral(), train=digits[0])
    weights = [
        m.weight.detach().flatten(1).numpy() for m in digits_net.modules() if isinstance(m, nn.Conv2d | nn.Linear)
    ]
    np.testing.assert_allclose(ds["spectral"][0], [np.linalg.norm(w.astype("f8"), 2) for w in weights], rtol=1e-9)
    np.testing.assert_array_equal(ds["spectral"], with_data["spectral"])
    np.testing.assert_array_equal(ds["total"], with_data["total"])
    for name in ("layer_name", "layer_type", "channels"):
        np.testing.assert_array_equal(ds[name], with_data[name])
    np.testing.assert_allclose(ds["weight_norm"], with_data["weight_norm"])
    assert np.isnan(ds["positions"].values).all()
    assert "in the order of registration" in ds["layer"].attrs["long_name"]
    assert statuses(ds, "spectral") == {"ok"}
    assert ds["model_status"].values.tolist() == ["ok"]
    assert np.isfinite(genmeasures.aggregate(ds)["spectral"].values).all()
    assert all(torch.equal(before[name], value) for name, value in digits_net.state_dict().items())


def test_measures_beside_them_say_what_they_lack(digits_net: nn.Module) -> None:
    ds = measured(digits_net, Roughness(), Spectral(reads="test"), layers=["conv2", "fc1"])
    assert ds["layer_name"].values.tolist() == [["conv2", "fc1"]]
    assert "not among the chosen layers" in str(ds["skipped_layers"].values[0])
    assert statuses(ds, "roughness") == {"undefined: roughness needs test data, and none are given"}
    assert statuses(ds, "spectral") == {"undefined: spectral needs test data, and none are given"}
    with pytest.raises(OptionError, match="there is no layer 'conv3'"):
        measured(digits_net, Spectral(), layers=["conv3"])


def test_models_that_were_not_run_are_kept_and_told_apart(make_net: Any, tmp_path: Any) -> None:
    nets = {"a": make_net(0, 1), "b": make_net(1, 1)}
    one = genmeasures.measure(nets, measures=[Spectral()], keep=tmp_path)
    again = genmeasures.measure({**nets, "b": make_net(2, 1)}, measures=[Spectral()], keep=tmp_path)
    np.testing.assert_array_equal(one["spectral"][0], again["spectral"][0])
    assert (one["spectral"][1] != again["spectral"][1]).all()
    assert len(list(tmp_path.glob("*.nc"))) == 3
    assert one.attrs["task_id"] == again.attrs["task_id"]


def test_layers_that_have_no_weights_to_read_are_skipped() -> None:
    net = nn.Sequential(nn.Embedding(4, 8), nn.Linear(8, 3), nn.BatchNorm1d(3))
    net.append(net[1])
    ds = measured(net, Spectral())
    assert ds["layer_name"].values.tolist() == [["1"]]
    assert "Embedding" in str(ds["skipped_layers"].values[0])


@pytest.mark.parametrize("outputs", ["flat", "column"])
def test_a_model_with_one_number_an_input_is_measured(outputs: str) -> None:
    class Regression(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(5, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x)[:, 0] if outputs == "flat" else self.fc(x)  # type: ignore[no-any-return]

    x = np.random.default_rng(0).normal(size=(60, 5)).astype(np.float32)
    ds = genmeasures.measure([Regression()], (x, x[:, 0]), (x, x[:, 0]), measures=["roughness"], extractor=SMALL)
    assert ds["model_status"].values.tolist() == ["ok"]
    assert np.isnan(ds["measured_test_accuracy"].values).all()
