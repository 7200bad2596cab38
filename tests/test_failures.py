"""Statuses of exceptions: logged tracebacks, exceptions raised on request, and resource shortages."""

from __future__ import annotations

import contextlib
import errno
import gc
import logging
import re
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import genmeasures
from genmeasures.engine import fits as fits_module
from genmeasures.engine.layer import LayerState
from genmeasures.errors import DataError, ModelError, OptionError, Undefined
from genmeasures.extractors import ReceptiveField
from genmeasures.failures import RESOURCE_STATUS, is_shortage, status_of, to_raise_later
from genmeasures.interfaces import (
    FeatureBatch,
    FeatureLabeler,
    FeatureMeasure,
    Layer,
    Measure,
    ModelData,
    ModelMeasure,
    Pass,
    TargetLabeler,
    Variable,
)
from genmeasures.measures import DaviesBouldin, Roughness

X = np.random.default_rng(0).random((20, 1, 6, 6), dtype=np.float32)
Y = np.arange(20) % 3


def fault(error: Exception) -> Exception:
    """The exception that a component raises; its line in the log is told by the comment beside it."""
    return error


class Faulty(FeatureMeasure):
    """Raises in one of its methods."""

    name = "faulty"
    variables = (Variable("faulty", "faulty", 0),)
    passes = (Pass("test", "vectors"),)

    def __init__(self, where: str, error: Exception) -> None:
        self.where, self.error = where, error

    def _at(self, where: str) -> None:
        if where == self.where:
            raise fault(self.error)  # here

    def start(self, layer: Layer, generator: torch.Generator) -> None:
        self._at("start")

    def update(self, batch: FeatureBatch) -> None:
        self._at("update")

    def end_pass(self) -> None:
        self._at("end_pass")

    def compute(self) -> float:
        self._at("compute")
        return 1.0


class FaultyModelMeasure(ModelMeasure):
    name = "faulty_model_measure"
    variables = (Variable("faulty_model_measure", "faulty", 0, dims=()),)

    def __init__(self, error: Exception) -> None:
        self.error = error

    def measure(self, model: nn.Module, layers: Sequence[Layer], data: ModelData) -> Mapping[str, float]:
        raise fault(self.error)  # here


class FaultyLabeler(FeatureLabeler):
    name = "faulty_labeler"

    def __init__(self, where: str, error: Exception) -> None:
        self.where, self.error = where, error

    def fit(self, projected: Tensor, generator: torch.Generator) -> None:
        if self.where == "fit":
            raise fault(self.error)  # here

    def label(self, projected: Tensor) -> Tensor:
        raise fault(self.error)  # here


class FaultyTargets(TargetLabeler):
    name = "faulty_targets"
    needs_fit = True

    def __init__(self, error: Exception) -> None:
        self.error = error

    def fit(self, generator: torch.Generator) -> None:
        """Having one keeps the labeler from being tried on the first targets, before any model runs."""

    def label(self, targets: Tensor, spatial: tuple[int, ...]) -> Tensor:
        raise fault(self.error)  # here


class FaultyExtractor(ReceptiveField):
    """Raises where the training vectors are recorded."""

    name = "faulty_extractor"
    error: Exception

    def vectors(self, output: Tensor, rows: Tensor, positions: Tensor) -> Tensor:
        raise fault(self.error)  # here


def failing_pca(error: Exception) -> Callable[..., Any]:
    def fit_pca(*given: Any) -> Any:
        raise fault(error)  # here

    return fit_pca


def failing_patch_pca(error: Exception) -> Callable[..., Any]:
    """Fails for patches."""

    def fit(vectors: Tensor, components: int) -> Any:
        raise fault(error)  # here

    return fit


PLACES: dict[str, Callable[[Exception], dict[str, Any]]] = {
    **{
        f"measure, {where}": lambda error, where=where: {"measures": [Faulty(where, error)]}
        for where in ("start", "update", "end_pass", "compute")
    },
    "model measure": lambda error: {"measures": [FaultyModelMeasure(error)]},
    "labeler, fit": lambda error: {"measures": [DaviesBouldin(FaultyLabeler("fit", error), space="pca")]},
    "labeler, label": lambda error: {"measures": [DaviesBouldin(FaultyLabeler("label", error), space="pca")]},
    "labels of recorded targets": lambda error: {"measures": [DaviesBouldin(FaultyTargets(error), space="pca")]},
    "labels of targets": lambda error: {
        "measures": [DaviesBouldin(FaultyTargets(error), space="patch", split="test")],
    },
    "record": lambda error: {"measures": [Roughness()], "extractor": FaultyExtractor()},
    "projection": lambda error: {"measures": [Roughness()], "fit_pca": failing_pca(error)},
    "projection of patches": lambda error: {
        "measures": [Roughness(input_pca=4)],
        "fit_leading": failing_patch_pca(error),
    },
}
"""All places where an exception becomes the status of a value, and how to raise an exception there."""


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Exception], list[str]]:
    """``measured(place, error)``: the statuses of a run in which the error is raised at that place."""

    def measure(place: str, error: Exception) -> list[str]:
        options = PLACES[place](error)
        for name in {"fit_pca", "fit_leading"} & set(options):
            monkeypatch.setattr(fits_module, name, options.pop(name))
        monkeypatch.setattr(FaultyExtractor, "error", error, raising=False)
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(1, 4, 3))
        ds = genmeasures.measure({"net": net}, (X, Y), (X, Y), **options)
        (made,) = options["measures"]
        short = is_shortage(error)
        assert all(str(status).startswith(RESOURCE_STATUS if short else "ok") for status in ds["model_status"].values)
        return [str(text) for text in ds[made.variables[0].name + "_status"].values.flat]

    return measure


@pytest.mark.parametrize("place", PLACES)
def test_the_traceback_of_a_failure_is_logged(
    place: str, measured: Callable[[str, Exception], list[str]], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, "genmeasures"):
        statuses = measured(place, ZeroDivisionError("my own fault"))
    assert set(statuses) == {"failed: ZeroDivisionError: my own fault"}
    assert "Traceback (most recent call last)" in caplog.text
    assert re.search(r'test_failures\.py", line \d+, in \w+\n\s+raise fault\(.*error\)  # here', caplog.text)
    assert all(record.levelno < logging.WARNING for record in caplog.records)
    told = [record for record in caplog.records if "Traceback" in caplog.handler.format(record)]
    assert {record.levelno for record in told} == {logging.DEBUG}


@pytest.mark.parametrize("place", PLACES)
def test_a_failure_is_raised_on_request(
    place: str, measured: Callable[[str, Exception], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GENMEASURES_DEBUG", "1")
    with pytest.raises(ZeroDivisionError, match="my own fault") as caught:
        measured(place, ZeroDivisionError("my own fault"))
    last = caught.traceback[-1]
    assert last.path.name == "test_failures.py"  # the frames of the component are there to be looked at
    assert str(last.statement).endswith("# here")


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    "measure",
    [
        Faulty("start", ZeroDivisionError("my own fault")),
        Faulty("update", ZeroDivisionError("my own fault")),
        Faulty("end_pass", ZeroDivisionError("my own fault")),
        Faulty("compute", ZeroDivisionError("my own fault")),
        FaultyModelMeasure(ZeroDivisionError("my own fault")),
        DaviesBouldin(labeler=FaultyLabeler("fit", ZeroDivisionError("my own fault"))),
        DaviesBouldin(labeler=FaultyLabeler("label", ZeroDivisionError("my own fault"))),
        DaviesBouldin(labeler=FaultyTargets(ZeroDivisionError("my own fault"))),
    ],
    ids=lambda one: f"{one.name}-{getattr(one, 'where', '')}" if isinstance(one, Measure) else str(one),
)
def test_a_failure_is_raised_where_the_call_asks_for_it(measure: Measure, threads: int) -> None:
    """With the frames of the component, also out of the threads that layers are fitted in; and only in that call."""
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with pytest.raises(ZeroDivisionError, match="my own fault") as caught:
            genmeasures.measure([net], (X, Y), X, measures=[measure], errors="raise")
        ds = genmeasures.measure([net], (X, Y), X, measures=[measure])
    finally:
        torch.set_num_threads(before)
    assert str(caught.traceback[-1].statement).endswith("# here")
    (variable,) = measure.variables
    assert set(ds[f"{variable.name}_status"].values.ravel()) == {"failed: ZeroDivisionError: my own fault"}


def test_undefined_is_not_raised() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3))
    ds = genmeasures.measure([net], X, X, measures=[Faulty("compute", Undefined("for a reason"))], errors="raise")
    assert set(ds["faulty_status"].values.ravel()) == {"undefined: for a reason"}


def test_another_value_of_errors_is_rejected() -> None:
    with pytest.raises(OptionError, match=r"errors='rais' is unknown \(did you mean 'raise'\? known: raise, status\)"):
        genmeasures.measure([nn.Linear(2, 2)], torch.zeros(4, 2), errors="rais")  # type: ignore[arg-type]


@pytest.mark.parametrize("count", [1, 2])
def test_where_no_model_can_be_measured_the_error_has_the_traceback(count: int) -> None:
    """As text: its frames would keep the tensors of all functions that it came through."""
    models = [Refusing(ZeroDivisionError("my own fault")) for _ in range(count)]
    for model in models:
        model.calls = 3
    with pytest.raises(ModelError, match="my own fault") as caught:
        genmeasures.measure(models, (X, Y), (X, Y))
    error = caught.value if count == 1 else caught.value.__cause__
    assert isinstance(error, ModelError)
    assert re.search(r"in forward\n\s+raise fault\(self\.error\)  # here", "".join(error.__notes__))


def test_errors_of_genmeasures_have_no_traceback() -> None:
    with pytest.raises(ModelError) as caught:
        genmeasures.measure([nn.Sequential(nn.ReLU())], X, X, measures=[Faulty("", ValueError())])
    assert not hasattr(caught.value, "__notes__")


@pytest.mark.parametrize("value", ["0", "", "true"])
def test_other_values_raise_nothing(
    value: str, measured: Callable[[str, Exception], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GENMEASURES_DEBUG", value)
    assert measured("measure, update", ZeroDivisionError("no")) == ["failed: ZeroDivisionError: no"]


SHORTAGES = [
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried to ..."),
    RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 4000000000 bytes."),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("std::bad_alloc"),
    RuntimeError("can't start new thread"),
    OSError(errno.ENOSPC, "No space left on device"),
    OSError(errno.EDQUOT, "Disk quota exceeded"),
    OSError(errno.EMFILE, "Too many open files"),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
    ModelError("the model rejects a batch of shape (3, 1, 6, 6), float32: std::bad_alloc"),
]
NO_SHORTAGES = [
    RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
    ValueError("out of memory lane"),  # not what torch or the system raise
    KeyError("memory"),
    OSError(errno.ENOENT, "No such file or directory"),
    DataError("the data set is empty"),
]


@pytest.mark.parametrize("error", SHORTAGES, ids=repr)
def test_a_shortage_is_recognized(error: Exception) -> None:
    assert is_shortage(error)
    status = status_of(error, "a measure")
    assert status.startswith(RESOURCE_STATUS)
    assert status.removeprefix(RESOURCE_STATUS)
    with pytest.raises(ModelError) as wrapped:
        raise ModelError("it cannot be built") from error
    assert is_shortage(wrapped.value)


@pytest.mark.parametrize("error", NO_SHORTAGES, ids=repr)
def test_other_errors_are_not_shortages(error: Exception) -> None:
    assert not is_shortage(error)
    assert not status_of(error, "a measure").startswith(RESOURCE_STATUS)


def test_measuring_again_after_a_shortage_is_no_shortage() -> None:
    """A caller that ran out of memory measures again, in smaller batches, while it handles that."""
    try:
        raise MemoryError
    except MemoryError:
        with pytest.raises(ValueError, match="another fault") as after:
            raise ValueError("another fault")  # noqa: B904 -- that it has a context is what is tested
    assert isinstance(after.value.__context__, MemoryError)
    assert status_of(after.value, "a measure") == "failed: ValueError: another fault"


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    "error",
    [MemoryError("gone"), torch.OutOfMemoryError("CUDA out of memory"), OSError(errno.ENOSPC, "full")],
    ids=repr,
)
def test_a_shortage_has_its_own_status_at_every_place(
    place: str, error: Exception, measured: Callable[[str, Exception], list[str]]
) -> None:
    assert set(measured(place, error)) == {f"failed: resources: {type(error).__name__}: {error}"}


@pytest.mark.parametrize("debug", ["", "1"])
@pytest.mark.parametrize("place", [place for place in PLACES if place != "record"])
def test_what_is_undefined_is_neither_logged_nor_raised(
    place: str,
    debug: str,
    measured: Callable[[str, Exception], list[str]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("GENMEASURES_DEBUG", debug)
    with caplog.at_level(logging.DEBUG, "genmeasures"):
        assert set(measured(place, Undefined("two clusters are needed"))) == {"undefined: two clusters are needed"}
    assert "Traceback" not in caplog.text
    assert "two clusters" not in caplog.text


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (Undefined(), "undefined: no reason given"),
        (Undefined(" "), "undefined: no reason given"),
        (ValueError(), "failed: ValueError: no message"),
        (ValueError("  \n"), "failed: ValueError: no message"),
        (DataError("the data are empty"), "failed: the data are empty"),
        (KeyError("x"), "failed: KeyError: 'x'"),
    ],
    ids=repr,
)
def test_a_status_says_what_was_raised(error: Exception, status: str) -> None:
    assert status_of(error, "a measure") == status


# Stored exceptions ------------------------------------------------------------------------------------------


class Large:
    """A stand-in for a tensor with weak references."""


def raised_beside(large: Large, cause: bool = False) -> Exception:
    """An exception that came through a function with a large thing among its variables."""

    def inner(held: Large) -> None:
        try:
            if cause:
                raise KeyError("the cause")
        except KeyError as error:
            raise ValueError("no") from error
        raise ValueError("no")

    try:
        inner(large)
    except ValueError as error:
        return error
    raise AssertionError


@pytest.mark.parametrize("cause", [False, True])
@pytest.mark.parametrize("keep", [to_raise_later, lambda error: (status_of(error, "it"), error)[1]])
def test_an_exception_that_is_kept_keeps_nothing_else(keep: Callable[[Exception], Exception], cause: bool) -> None:
    gc.disable()
    try:
        large = Large()
        held = weakref.ref(large)
        kept = keep(raised_beside(large, cause))
        del large
        assert held() is None
    finally:
        gc.enable()
    assert isinstance(kept, ValueError)


@pytest.mark.parametrize("place", ["labeler, fit", "labels of recorded targets", "projection of patches", "record"])
def test_a_run_with_failures_frees_its_tensors_at_once(
    place: str, measured: Callable[[str, Exception], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The state of a layer, such as its training sample, is freed without the garbage collector."""
    runs: list[weakref.ref[Any]] = []
    init = LayerState.__init__

    def noting(self: Any, *given: Any) -> None:
        runs.append(weakref.ref(self))
        init(self, *given)

    monkeypatch.setattr(LayerState, "__init__", noting)
    gc.collect()
    gc.disable()
    try:
        measured(place, ZeroDivisionError("my own fault"))
        assert len(runs) == 1
        assert runs[0]() is None
    finally:
        gc.enable()


def test_a_stored_exception_raised_twice_keeps_its_own_traceback(caplog: pytest.LogCaptureFixture) -> None:
    """Two measures with one labeler: both tracebacks lead to the labeler, and none grows by the other."""
    labeler = FaultyLabeler("fit", ZeroDivisionError("my own fault"))
    measures: list[Measure] = [DaviesBouldin(labeler, space="pca"), Roughness(labeler)]
    with caplog.at_level(logging.DEBUG, "genmeasures"):
        genmeasures.measure({"net": nn.Sequential(nn.Conv2d(1, 4, 3))}, (X, Y), (X, Y), measures=measures)
    texts = [record.exc_text or "" for record in caplog.records if record.exc_info]
    assert len(texts) == 2
    for text in texts:
        assert text.count("# here") == 1
    assert len(texts[0].splitlines()) == pytest.approx(len(texts[1].splitlines()), abs=4)


def test_the_traceback_of_the_caller_is_left_alone(measured: Callable[[str, Exception], list[str]]) -> None:
    """Measuring while an exception is handled takes nothing from that exception."""
    kept = None
    try:
        raise KeyError("of the caller")
    except KeyError as error:
        measured("measure, update", ZeroDivisionError("my own fault"))
        kept = error.__traceback__
    assert kept is not None


# Models -----------------------------------------------------------------------------------------------------


class Refusing(nn.Module):
    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.conv, self.error, self.calls = nn.Conv2d(1, 4, 3), error, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.calls > 3:
            raise fault(self.error)  # here
        return self.conv(x)


@contextlib.contextmanager
def two_models(error: Exception) -> Iterator[Callable[[], Any]]:
    models = {"net": nn.Sequential(nn.Conv2d(1, 4, 3)), "bad": Refusing(error)}
    yield lambda: genmeasures.measure(models, (X, Y), (X, Y), batch_size=5)


def test_the_traceback_of_a_model_that_fails_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with two_models(ZeroDivisionError("my own fault")) as measure, caplog.at_level(logging.DEBUG, "genmeasures"):
        status = str(measure()["model_status"].sel(model="bad").values)
    assert status.startswith("failed: ")
    assert "my own fault" in status
    assert re.search(r"in forward\n\s+raise fault\(self\.error\)  # here", caplog.text)


def test_a_model_that_fails_is_raised_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENMEASURES_DEBUG", "1")
    with two_models(ZeroDivisionError("my own fault")) as measure, pytest.raises(ModelError) as caught:
        measure()
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_a_model_that_runs_out_of_memory_has_the_status_of_a_shortage() -> None:
    with two_models(torch.OutOfMemoryError("CUDA out of memory")) as measure:
        assert str(measure()["model_status"].sel(model="bad").values).startswith(RESOURCE_STATUS)


def test_an_exception_without_a_message_says_where_it_was_raised() -> None:
    class Silent(Faulty):
        def compute(self) -> float:
            raise ValueError

    ds = genmeasures.measure([nn.Sequential(nn.Conv2d(1, 4, 3))], X, X, measures=[Silent("", ValueError())])
    line = Silent.compute.__code__.co_firstlineno + 1
    assert set(ds["faulty_status"].values.ravel()) == {
        f"failed: ValueError: no message (test_failures.py, line {line})"
    }


class Divides(Faulty):
    def __init__(self) -> None:
        super().__init__("", ValueError())

    def compute(self) -> float:
        return 1 / 0


def test_a_failure_that_was_kept_is_raised_on_request(tmp_path: Path) -> None:
    """What is taken from a folder raises nothing; a run without failures is taken as ever."""
    net = nn.Sequential(nn.Conv2d(1, 4, 3))

    def measure(measures: Sequence[Any], **options: Any) -> Any:
        return genmeasures.measure([net], X, X, measures=measures, keep=tmp_path, **options)

    assert set(measure([Divides()])["faulty_status"].values.ravel()) == {"failed: ZeroDivisionError: division by zero"}
    assert len(list(tmp_path.glob("*.nc"))) == 1
    with pytest.raises(ZeroDivisionError):
        measure([Divides()], errors="raise")
    kept = [measure(["confidence"], errors=errors).attrs["seconds"] for errors in ("status", "raise")]
    assert kept[0] == kept[1]
