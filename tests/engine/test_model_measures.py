"""What model measures are given, and what becomes of a model that they change."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import genmeasures
from genmeasures.engine import model_measures as model_module
from genmeasures.errors import OptionError
from genmeasures.interfaces import FeatureBatch, FeatureMeasure, Layer, ModelMeasure, Pass, Task, TaskModel, Variable
from genmeasures.labelers import KMeans
from genmeasures.tracing.guard import State, lent

X = torch.rand(20, 1, 6, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(20) % 3


def make_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))


class Sums(ModelMeasure):
    """What a measure after another sees of the model: sums of weights and buffers, modes, hooks, outputs."""

    name = "sums"
    variables = tuple(
        Variable(name, name, dims=()) for name in ("sums", "buffers", "modes", "hooks", "grads", "outputs")
    )

    def measure(self, model: Any, layers: Any, data: Any) -> Any:
        inputs, _ = data.sample("test", None)
        return {
            "sums": sum(float(one.detach().double().sum()) for one in model.parameters()),
            "buffers": sum(float(one.double().sum()) for one in model.buffers()),
            "modes": float(sum(one.training for one in model.modules())),
            "hooks": float(sum(len(one._forward_hooks) for one in model.modules())),
            "grads": float(sum(one.requires_grad for one in model.parameters())),
            "outputs": float(model(inputs).detach().double().sum()),
        }


def add_to_weight(model: Any) -> None:
    with torch.no_grad():
        model[0].weight += 1


def write_data(model: Any) -> None:
    model[4].bias.data += 1e-3  # not counted as a write


def replace_weight(model: Any) -> None:
    model[0].weight = nn.Parameter(torch.zeros_like(model[0].weight))


def round_trip(model: Any) -> None:
    """As sharpness measures do, and float32 does not come back to the bit."""
    with torch.no_grad():
        model[0].weight.add_(1e4).sub_(1e4)


HARM: dict[str, tuple[Callable[[Any], object], str]] = {
    "weight": (add_to_weight, "0.weight has changed"),
    "data": (write_data, "4.bias has changed"),
    "parameter": (replace_weight, "0.weight has changed"),
    "round trip": (round_trip, "0.weight has changed"),
    "buffer": (lambda model: model[1].running_var.mul_(2), "1.running_var has changed"),
    "statistics": (lambda model: model.train()(X), "1.running_mean has changed"),
    "mode": (lambda model: model.train(), "the mode of Sequential has changed"),
    "hook": (
        lambda model: model[2].register_forward_hook(lambda *_: None),
        "a hook was added to ReLU 2 or removed from it",
    ),
    "requires_grad": (lambda model: model[4].bias.requires_grad_(False), "requires_grad of 4.bias has changed"),
    "module": (lambda model: model.append(nn.Softmax(1)), "the modules of Sequential have changed"),
    "new buffer": (lambda model: model.register_buffer("mask", torch.ones(1)), "mask is new"),
}


class Harms(ModelMeasure):
    name = "harms"
    variables = (Variable("harms", "a value a layer"), Variable("harms_too", "a value", dims=()))

    def __init__(self, how: str, error: Exception | None = None) -> None:
        self.how = how
        self.error = error

    def measure(self, model: Any, layers: Any, data: Any) -> Any:
        HARM[self.how][0](model)
        if self.error is not None:
            raise self.error
        return {"harms": [1.0] * len(layers), "harms_too": 1.0}


def contents(model: nn.Module) -> dict[str, Any]:
    return {
        **{name: tensor.clone() for name, tensor in model.state_dict().items()},
        "modes": [one.training for one in model.modules()],
        "hooks": [len(one._forward_hooks) for one in model.modules()],
        "requires_grad": [one.requires_grad for one in model.parameters()],
    }


@pytest.mark.parametrize("how", HARM)
def test_a_measure_that_changes_the_model_is_caught_and_harms_no_other(how: str) -> None:
    net = make_net()
    before = contents(net)
    alone = genmeasures.measure([net], (X, Y), X, measures=[Sums(), "davies_bouldin"])
    ds = genmeasures.measure([net], (X, Y), X, measures=[Harms(how), Sums(), "davies_bouldin"])
    for name in ("harms", "harms_too"):
        assert np.isnan(ds[name].values).all()
        for status in ds[f"{name}_status"].values.ravel():
            assert status.startswith(f"failed: harms did not leave the model as it was: {HARM[how][1]}")
    for variable in (*Sums.variables, genmeasures.measures.DaviesBouldin.variables[0]):
        # The same operations in the same order.
        np.testing.assert_array_equal(ds[variable.name].values, alone[variable.name].values)
    after = contents(net)
    assert before.keys() == after.keys()
    for name, value in before.items():
        same = torch.equal(value, after[name]) if isinstance(value, Tensor) else value == after[name]
        assert same, name


def test_one_that_fails_besides_says_why() -> None:
    ds = genmeasures.measure([make_net()], (X, Y), X, measures=[Harms("weight", ValueError("out of steps")), Sums()])
    assert set(ds["harms_status"].values.ravel()) == {"failed: ValueError: out of steps"}
    assert ds["sums_status"].values[0] == "ok"


def test_one_that_changes_the_model_is_raised_on_request() -> None:
    net = make_net()
    before = contents(net)
    with pytest.raises(TypeError, match=r"harms did not leave the model as it was: 0\.weight has changed"):
        genmeasures.measure([net], (X, Y), X, measures=[Harms("weight")], errors="raise")
    assert torch.equal(net.state_dict()["0.weight"], before["0.weight"])


class Counts(nn.Module):
    """A model that writes to itself whenever it runs."""

    calls: Tensor
    cache: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.net = make_net()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if not hasattr(self, "cache"):
            self.register_buffer("cache", torch.ones(len(x)), persistent=False)
        with torch.no_grad():
            self.net[4].weight.clamp_(-0.1, 0.1)  # a constraint of its own
        out: Tensor = self.net(x)
        return out


def test_what_the_model_does_to_itself_is_no_fault_of_a_measure() -> None:
    net = Counts()
    ds = genmeasures.measure([net], (X, Y), X, measures=[Sums()])
    assert set(ds["sums_status"].values.ravel()) == {"ok"}
    assert not hasattr(net, "cache")
    assert net.calls == 0


def test_a_lent_model_comes_back() -> None:
    net = make_net().eval()
    before = contents(net)
    with lent(net, torch.device("cpu"), own=["1.running_mean has changed"]) as changes:
        assert changes() == []
        add_to_weight(net)
        net[1].running_mean.add_(1)  # type: ignore[index, operator]
        assert changes() == ["0.weight has changed"]
    assert all(torch.equal(one, net.state_dict()[name]) for name, one in before.items() if isinstance(one, Tensor))
    assert State(net).changes(net) == []


# What they are given ---------------------------------------------------------------------------------------


class Given(ModelMeasure):
    name = "given"
    variables = (Variable("given", "norm of the weight"), Variable("twice_the_width", "twice the width", dims=()))
    reads_facts = True

    def measure(self, model: Any, layers: Any, data: Any) -> Any:
        for layer in layers:
            assert data.module(layer) is dict(model.named_modules())[layer.name]
            weight = data.weight(layer)
            assert torch.equal(weight, data.module(layer).weight)
            assert not weight.requires_grad
            weight.zero_()  # a copy
        assert dict(data.facts.metrics) == {"test_accuracy": 0.5}
        assert data.facts.name == "net"
        norms = [float(torch.linalg.vector_norm(data.weight(layer), dtype=torch.float64)) for layer in layers]
        return {"given": norms, "twice_the_width": 2.0 * data.facts.hparams["width"]}


class Undeclared(Given):
    reads_facts = False


class One(Task):
    name = "one"

    def __init__(self, width: int = 64) -> None:
        self.width = width

    def models(self) -> Any:
        return [TaskModel("net", make_net, {"width": self.width}, {"test_accuracy": 0.5})]

    def data(self, split: Any) -> Any:
        return X, Y


def test_a_model_measure_is_told_what_is_known_of_the_model() -> None:
    ds = genmeasures.measure(One(), measures=[Given()], errors="raise")
    np.testing.assert_allclose(ds["given"].values[0], ds["weight_norm"].values[0], rtol=1e-12)
    assert ds["twice_the_width"].values[0] == 128
    undeclared = genmeasures.measure(One(), measures=[Undeclared()])["twice_the_width_status"].values[0]
    assert undeclared == ("failed: data.facts was not declared: write reads_facts = True in the class of the measure")


def test_values_that_depend_on_what_is_known_are_not_kept_for_another(tmp_path: Path) -> None:
    """Weights, data and code are the same; of a measure that reads no facts, what is kept is taken."""
    first, again = (genmeasures.measure(One(width), measures=[Given()], keep=tmp_path) for width in (64, 32))
    assert [float(ds["twice_the_width"][0]) for ds in (first, again)] == [128, 64]
    keys = [genmeasures.measure(One(width), measures=[Sums()], keep=tmp_path)["model_key"] for width in (64, 32)]
    assert keys[0].values[0] == keys[1].values[0]


def test_a_layer_of_another_run_has_no_module() -> None:
    class Other(ModelMeasure):
        name = "other"
        variables = (Variable("other", "other", dims=()),)

        def measure(self, model: Any, layers: Any, data: Any) -> Any:
            return {"other": float(data.weight(dataclasses.replace(layers[0], name="conv9")).sum())}

    status = genmeasures.measure([make_net()], X, measures=[Other()])["other_status"].values[0]
    assert status == "failed: the layer 'conv9' is not measured in this run (known: 0, 4)"


@pytest.mark.parametrize(
    ("read", "status"),
    [
        (
            lambda model, layers, data: data.batches("tset"),
            "failed: misreads: there is no split 'tset' (did you mean 'test",
        ),
        (lambda model, layers, data: data.wieght(layers[0]), "did you mean 'weight'? known: batches, "),
        (lambda model, layers, data: layers[0].weight, "did you mean 'weight_norm'? known: channels, "),
        (lambda model, layers, data: data.facts, "failed: data.facts was not declared"),
        (lambda model, layers, data: 1.0, "failed: measure returned an object of type float, expected a dict of "),
        (lambda model, layers, data: None, "failed: measure returned None, expected a dict of values: {'misreads': …}"),
        (
            lambda model, layers, data: {"misreads": 1.0},
            "misreads is of type float, expected a sequence of 2 values",
        ),
        (lambda model, layers, data: {"misread": [1.0] * 2}, "not a variable of the measure (did you mean 'misreads'?"),
    ],
)
def test_a_misreading_says_what_there_is(read: Any, status: str) -> None:
    class Misreads(ModelMeasure):
        name = "misreads"
        variables = (Variable("misreads", "misreads"),)

        def measure(self, model: Any, layers: Any, data: Any) -> Any:
            made = read(model, layers, data)
            return list(made) if hasattr(made, "__next__") else made

    found = genmeasures.measure([make_net()], X, measures=[Misreads()])["misreads_status"].values[0, 0]
    assert found.startswith("failed: ")
    assert status in found


# Features --------------------------------------------------------------------------------------------------


class Reads(FeatureMeasure):
    """Reads what its pass does not declare."""

    name = "reads"
    variables = (Variable("reads", "reads"),)

    def __init__(self, read: Any, *, fields: Any = ("vectors",), split: str = "test", labeler: Any = None) -> None:
        self.read = read
        self.fields = fields
        self.split = split
        self.labeler = labeler
        self.patch_components = 2 if "projected_patches" in fields else 0

    @property
    def passes(self) -> Any:
        return (Pass(self.split, *self.fields),)  # type: ignore[arg-type]

    def start(self, layer: Layer, generator: torch.Generator) -> None:
        self.size = self.extractor.vector_size(layer)

    def update(self, batch: FeatureBatch) -> None:
        if "vectors" in self.fields:
            assert batch.vectors.shape[1] == self.size
        self.read(batch, self)

    def compute(self) -> float:
        return float(self.size)


UNDECLARED = "failed: the field {!r} was not declared for this pass: add it to Pass(...)"


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("field", ["projected", "patches", "patch_set", "projected_patches", "labels"])
def test_a_field_that_is_not_declared_is_refused(field: str, split: str) -> None:
    """Also where other measures have declared it, so that it is there: alone, the measure would fail."""

    def read(batch: FeatureBatch, measure: Reads) -> object:
        return batch.labels(measure.labeler) if field == "labels" else getattr(batch, field)  # type: ignore[arg-type]

    others = ["davies_bouldin", "roughness", "confidence"]
    for measures in ([Reads(read, split=split)], [*others, Reads(read, split=split)]):
        ds = genmeasures.measure([make_net()], (X, Y), X, measures=measures)
        assert set(ds["reads_status"].values.ravel()) == {UNDECLARED.format(field)}
    alone = genmeasures.measure([make_net()], (X, Y), X, measures=others)
    for name in others:
        np.testing.assert_array_equal(ds[name].values, alone[name].values)


def test_what_a_field_is_made_of_need_not_be_declared() -> None:
    def every(batch: FeatureBatch, measure: Reads) -> None:
        for name in measure.fields:
            _ = batch.labels(measure.labeler) if name == "labels" else getattr(batch, name)  # type: ignore[arg-type]

    for fields in (("projected",), ("projected", "labels"), ("labels",), ("patches",), ("projected_patches",)):
        reading = Reads(every, fields=fields, split="train", labeler=KMeans(2) if "labels" in fields else None)
        ds = genmeasures.measure([make_net()], (X, Y), measures=[reading], errors="raise")
        assert set(ds["reads_status"].values.ravel()) == {"ok"}, fields


@pytest.mark.parametrize(
    ("read", "status"),
    [
        (
            lambda batch, measure: batch.labels(KMeans(3)),
            "failed: batch.labels(KMeans(k=3, restarts=10, repeats=1)): a measure can read labels",
        ),
        (
            lambda batch, measure: batch.labels(None),
            "failed: batch.labels(None): a measure can read labels of its own",
        ),
        (
            lambda batch, measure: batch.vector,
            "'vector' (did you mean 'vectors'? known: held_back, inputs, labeled, labels, ",
        ),
        (lambda batch, measure: batch.layer.size, "(did you mean 'patch_size'? known: channels, "),
    ],
)
def test_a_batch_that_is_misread_says_what_there_is(read: Any, status: str) -> None:
    measures = [Reads(read, fields=("vectors", "labels"), labeler=KMeans(2))]
    for found in genmeasures.measure([make_net()], (X, Y), X, measures=measures)["reads_status"].values.ravel():
        assert found.startswith("failed: ")
        assert status in found


def test_the_size_of_a_vector_is_known_at_the_start() -> None:
    for extractor, sizes in (("receptive_field", [4, 3]), ("whole_tensor", [64, 3])):
        ds = genmeasures.measure(
            [make_net()], X, X, measures=[Reads(lambda *_: None)], extractor=extractor, errors="raise"
        )
        assert ds["reads"].values[0].tolist() == sizes


@pytest.mark.parametrize("name", ["weight_norm", "layer", "model_key", "generalization_gap", "channels"])
def test_a_variable_with_the_name_of_a_coordinate_is_refused_before_any_model_runs(name: str) -> None:
    class Named(Sums):
        variables = (Variable(name, "what it is", dims=()),)

    with pytest.raises(OptionError, match=rf"Named\(\): a variable cannot be called '{name}', the name of a"):
        genmeasures.measure([nn.Sequential()], X, measures=[Named()])


@pytest.mark.parametrize(
    ("dims", "value", "message"),
    [
        ((), np.ones(3), "failed: the measure returned a NumPy array of shape (3,), expected a number"),
        (("layer",), [np.ones(3)] * 2, "failed: the measure returned a NumPy array of shape (3,), expected a number"),
        (
            ("sample",),
            [1.0, 2.0],
            "failed: the measure returned an object of type list, expected a NumPy array with the dimensions (sample)",
        ),
        (
            ("layer", "sample"),
            [1.0, 2.0],
            "failed: the measure returned an object of type float, expected a NumPy array with the dimensions (sample)",
        ),
        (
            ("row", "column"),
            np.ones(3),
            "failed: the measure returned a NumPy array of shape (3,), expected a NumPy array with the dimensions (row",
        ),
        (
            ("layer", "row"),
            [np.ones((2, 2))] * 2,
            "failed: the measure returned a NumPy array of shape (2, 2), expected a NumPy array with the dimensions (r",
        ),
        (("layer",), {"0": 1.0}, "failed: shaped is of type dict, expected a sequence of 2 values, one per layer"),
        (("layer",), "ok", "failed: shaped is of type str, expected a sequence of 2 values, one per layer"),
    ],
)
def test_a_value_of_another_shape_than_declared(dims: Any, value: Any, message: str) -> None:
    class Shaped(ModelMeasure):
        name = "shaped"
        variables = (Variable("shaped", "what it is", dims=dims),)

        def measure(self, model: Any, layers: Any, data: Any) -> Any:
            return {"shaped": value}

    ds = genmeasures.measure([make_net()], X, X, measures=[Shaped(), Sums()])
    for status in ds["shaped_status"].values.ravel():
        assert status.startswith(message)
    assert ds["sums_status"].values[0] == "ok"


def test_where_there_is_no_memory_for_another_copy_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*given: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(model_module, "lent", full)
    ds = genmeasures.measure([make_net()], (X, Y), X, measures=[Sums(), "davies_bouldin"])
    assert ds["sums_status"].values[0] == "failed: resources: OutOfMemoryError: CUDA out of memory"
    assert np.isfinite(ds["davies_bouldin"].values).all()
