"""Hashes of models, data and components: equal if a model computes the same, different if it may not."""

from __future__ import annotations

import collections
import dataclasses
import enum
import functools
import os
import subprocess
import sys
import textwrap
import threading
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from genmeasures.data import DataSource
from genmeasures.extractors import ReceptiveField
from genmeasures.identity import (
    Unidentified,
    component_identity,
    data_identity,
    model_identity,
    origins,
    versions_identity,
)
from genmeasures.interfaces import Layer, ModelData, ModelMeasure, Split, Variable
from genmeasures.labelers import KMeans
from genmeasures.measures import DaviesBouldin

BASE = """
import math
import torch
from torch import nn
from torch.nn import functional as F

SCALE = 2.0
TABLE = {"low": [1, 2], "high": (3.0, "text")}

def helper(x):
    return x * SCALE

class Base(nn.Module):
    gain = 1.0

    def finish(self, x):
        return helper(x) + self.gain

class Net(Base):
    '''A network.'''

    def __init__(self, slope=0.1):
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.drop = nn.Dropout(slope)
        self.slope = slope

    def forward(self, x):
        x = F.leaky_relu(self.fc(x), self.slope)
        x = self.drop(x) if x.numel() in {1, 2, 3} else x
        return self.finish(x)
"""


def defined(source: str = BASE, name: str | None = None, folder: str = "/nowhere", make: str = "Net()") -> nn.Module:
    """A model of a class that ``source`` defines, as a module of that name, or as a prompt would without one."""
    scope: dict[str, Any] = {} if name is None else {"__name__": name}
    exec(compile(source, f"{folder}/net.py", "exec", dont_inherit=True), scope)
    torch.manual_seed(0)
    made = eval(make, scope)
    assert isinstance(made, nn.Module)
    return made


def code(model: nn.Module) -> str:
    return model_identity(model).code


# What is the same -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "other",
    [
        lambda: defined(),
        lambda: defined(name="net"),
        lambda: defined(name="another.module", folder="/elsewhere"),
        lambda: defined("\n\n# A comment.\n" + BASE),
        lambda: defined(BASE.replace("A network.", "A network, of which more could be said.")),
        lambda: defined(BASE + "\ndef unused(x):\n    return -x\nOTHER = 5\n"),
        lambda: defined().eval(),
        lambda: defined().requires_grad_(False),
    ],
    ids=["again", "named", "elsewhere", "comment", "docstring", "unused", "eval", "frozen"],
)
def test_equal_computations_have_equal_hashes(other: Callable[[], nn.Module]) -> None:
    assert model_identity(other()) == model_identity(defined())


def test_running_a_model_does_not_change_its_hash() -> None:
    for model in (defined(), nn.LSTM(4, 3), nn.Sequential(nn.BatchNorm1d(4))):
        model.eval()
        before = model_identity(model)
        loss: Any = model(torch.ones(2, 4))
        (loss[0] if isinstance(loss, tuple) else loss).sum().backward()
        assert model_identity(model) == before


def test_hashes_are_equal_in_every_process(tmp_path: Path) -> None:
    """For any hash seed, folder of the code, and way of compiling it."""
    script = """
        import warnings; warnings.simplefilter("ignore")
        import sys, torch
        from torch import nn
        from torch.nn.utils import parametrizations, weight_norm
        from genmeasures.identity import component_identity, model_identity
        from genmeasures.measures import DaviesBouldin
        import its_net
        def seeded(make):
            torch.manual_seed(0)
            return make()
        relu = lambda: nn.Sequential(nn.Linear(4, 4), nn.ReLU())
        makers = [
            its_net.Net, relu, lambda: nn.TransformerEncoderLayer(4, 2, 8), lambda: nn.GRU(4, 4),
            lambda: weight_norm(nn.Linear(4, 4)), lambda: parametrizations.spectral_norm(nn.Linear(4, 4)),
            lambda: torch.jit.script(relu()), lambda: torch.fx.symbolic_trace(relu()),
        ]
        for make in makers:
            found = model_identity(seeded(make))
            print(found.weights, found.code, sorted(found.distributions))
        print(component_identity([DaviesBouldin()])[0])
    """
    said = []
    for seed in ("1", "2"):
        folder = tmp_path / seed
        folder.mkdir()
        (folder / "its_net.py").write_text(BASE)
        path = os.pathsep.join([str(folder), *filter(None, sys.path)])
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(script)],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            capture_output=True, text=True, timeout=120, check=True,
        )  # fmt: skip
        said.append(done.stdout.splitlines())
    assert len(said[0]) == 9
    assert said[0] == said[1]
    codes = [line.split()[1] for line in said[0][:-1]]
    assert len(set(codes)) == len(codes)
    assert said[0][0].split()[1] == code(defined())


# What is another model --------------------------------------------------------------------------------------


def changed(old: str, new: str) -> Callable[[], nn.Module]:
    assert BASE.count(old) == 1
    return lambda: defined(BASE.replace(old, new))


def with_attribute(name: str, value: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        model = defined()
        setattr(model, name, value)
        return model

    return make


def hooked(register: str) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        model = defined()
        getattr(model.fc, register)(lambda *given: None)
        return model

    return make


def patched_class() -> nn.Module:
    model = defined()
    type(model).finish = lambda self, x: x  # type: ignore[attr-defined]
    return model


def patched_instance() -> nn.Module:
    model = defined()
    model.fc.forward = lambda x: x  # type: ignore[method-assign]
    return model


def parametrized() -> nn.Module:
    model = defined()
    torch.nn.utils.parametrizations.orthogonal(model.fc)
    return model


OTHERS: dict[str, Callable[[], nn.Module]] = {
    "corrected forward": changed("self.finish(x)\n", "self.finish(x) + 1\n"),
    "another constant": changed("SCALE = 2.0", "SCALE = 3.0"),
    "a function that it calls": changed("x * SCALE", "x / SCALE"),
    "the class it derives from": changed("+ self.gain", "- self.gain"),
    "an attribute of a class": changed("gain = 1.0", "gain = 1.5"),
    "a default": changed("slope=0.1", "slope=0.2"),
    "a set of constants": changed("{1, 2, 3}", "{1, 2, 4}"),
    "another library function": changed("F.leaky_relu", "F.elu"),
    "a number": with_attribute("slope", 0.3),
    "1 and 1.0": with_attribute("slope", 1),
    "a flag": with_attribute("flag", True),
    "dropout": with_attribute("drop", nn.Dropout(0.7)),
    "another activation": with_attribute("drop", nn.ReLU()),
    "a function": with_attribute("act", torch.relu),
    "a lambda": with_attribute("act", lambda x: x + 1),
    "a partial": with_attribute("act", functools.partial(torch.clamp, min=0)),
    "a list of tensors": with_attribute("scales", [torch.ones(2), torch.zeros(2)]),
    "a forward of its own": with_attribute("forward", lambda x: x),
    "a method put in place": patched_class,
    "a layer's forward put in place": patched_instance,
    "a hook": hooked("register_forward_hook"),
    "a hook before": hooked("register_forward_pre_hook"),
    "a hook of gradients": hooked("register_full_backward_hook"),
    "a parametrization": parametrized,
}


def test_different_computations_have_different_hashes() -> None:
    codes = {name: code(make()) for name, make in OTHERS.items()} | {"as it was": code(defined())}
    alike = [name for name, count in collections.Counter(codes.values()).items() if count > 1]
    assert not alike, [name for name, found in codes.items() if found in alike]


def maker(value: Any) -> Callable[[Tensor], Tensor]:
    def scaled(x: Tensor) -> Tensor:
        return x * value

    return scaled


class Color(enum.Enum):
    RED = 1
    BLUE = 2


@dataclasses.dataclass
class Config:
    width: int = 3
    names: list[str] = dataclasses.field(default_factory=list)


class Slotted:
    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value


class Held(dict[str, Any]):
    """A dict of the user's own."""


class Method:
    def __init__(self, scale: float) -> None:
        self.scale = scale

    def __call__(self, x: Tensor) -> Tensor:
        return x * self.scale


@functools.lru_cache
def cached(x: int) -> int:
    return x


def shifted(base: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    base = base.copy()
    base[-1] += 1
    return base


LONG = np.arange(5000.0)
DIFFERENT: dict[str, tuple[Any, Any]] = {
    "closures": (maker(1.0), maker(2.0)),
    "closures over arrays": (maker(LONG), maker(shifted(LONG))),
    "defaults": (lambda x, k=1: x * k, lambda x, k=2: x * k),
    "keyword defaults": (lambda x, *, k=1: x * k, lambda x, *, k=2: x * k),
    "functions in functions": (lambda: lambda x: x + 1, lambda: lambda x: x + 2),
    "comprehensions": (lambda x: [i + 1 for i in x], lambda x: [i + 2 for i in x]),
    "partials": (functools.partial(torch.add, alpha=1), functools.partial(torch.add, alpha=2)),
    "partials of partials": tuple(functools.partial(functools.partial(maker, k)) for k in (1, 2)),
    "bound methods": (Method(1.0).__call__, Method(2.0).__call__),
    "callables": (Method(1.0), Method(2.0)),
    "builtins": (torch.relu, torch.tanh),
    "tensor methods": (Tensor.relu, Tensor.tanh),
    "functions of a library": (nn.functional.gelu, nn.functional.silu),
    "classes of a library": (nn.ReLU, nn.GELU),
    "modules in containers": ([nn.Dropout(0.1)], [nn.Dropout(0.2)]),
    "tensors": (torch.zeros(3), torch.zeros(4)),
    "types of tensors": (torch.zeros(3), torch.zeros(3).half()),
    "bfloat16": (torch.zeros(3).bfloat16(), torch.ones(3).bfloat16()),
    "sparse tensors": (torch.eye(3).to_sparse(), (2 * torch.eye(3)).to_sparse()),
    "long arrays": (LONG, shifted(LONG)),
    "arrays of objects": (np.array([1, "a"], object), np.array([1, "b"], object)),
    "numpy scalars": (np.float32(1), np.float64(1)),
    "dicts": ({"a": 1}, {"a": 2}),
    "order of dicts": ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
    "sets": ({"a", "b"}, {"a", "c"}),
    "named tuples": (collections.namedtuple("P", "x")(1), collections.namedtuple("P", "x")(2)),
    "members of an enum": (Color.RED, Color.BLUE),
    "dataclasses": (Config(3), Config(4)),
    "lists of dataclasses": (Config(3, ["a"]), Config(3, ["b"])),
    "slots": (Slotted(1), Slotted(2)),
    "dicts of one's own": (Held(a=1), Held(a=2)),
    "namespaces": (types.SimpleNamespace(a=1), types.SimpleNamespace(a=2)),
    "default dicts": (collections.defaultdict(int), collections.defaultdict(list)),
    "paths": (Path("a"), Path("b")),
    "generators of random numbers": (torch.Generator().manual_seed(1), torch.Generator().manual_seed(2)),
    "numpy's generators": (np.random.default_rng(1), np.random.default_rng(2)),
    "texts that look alike": ("1", 1),
    "zeros": (0.0, -0.0),
    "where lists end": ([["a"], "b"], [["a", "b"]]),
    "objects and copies": ([LONG.copy()] * 2, [LONG.copy(), shifted(LONG)]),
}


@pytest.mark.parametrize("kind", DIFFERENT)
def test_attributes_are_distinguished_by_their_contents(kind: str) -> None:
    one, other = DIFFERENT[kind]
    found = code(with_attribute("it", one)())
    assert found == code(with_attribute("it", one)())
    assert found != code(with_attribute("it", other)())


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_quantized_tensors() -> None:
    one, other = (torch.quantize_per_tensor(torch.ones(2), scale, 0, torch.qint8) for scale in (0.5, 1.0))
    assert code(with_attribute("it", one)()) == code(with_attribute("it", one.clone())())
    assert code(with_attribute("it", one)()) != code(with_attribute("it", other)())


@pytest.mark.parametrize("make", [lambda: {f"name{i}" for i in range(50)}, lambda: maker(3), lambda: cached, LONG.copy])
def test_equal_attributes_made_anew(make: Callable[[], Any]) -> None:
    assert code(with_attribute("it", make())()) == code(with_attribute("it", make())())


def test_attributes_that_refer_to_each_other() -> None:
    def looped(value: int) -> nn.Module:
        model = defined()
        inner = nn.Linear(1, 1)
        model.__dict__["loop"] = [model, {"self": model}, value]
        inner.__dict__["owner"] = model  # not registered: a child that knows its parent
        model.__dict__["inner_list"] = [inner]
        with torch.no_grad():
            inner.weight.fill_(1)
            inner.bias.fill_(1)
        return model

    assert code(looped(1)) == code(looped(1))
    assert code(looped(1)) != code(looped(2))


# Code in other modules --------------------------------------------------------------------------------------


@pytest.fixture
def importable(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    def add(name: str, source: str) -> None:
        module = types.ModuleType(name)
        module.__file__ = f"/nowhere/{name}.py"
        exec(compile(source, module.__file__, "exec"), module.__dict__)
        monkeypatch.setitem(sys.modules, name, module)

    return add


USERS = {
    "from import": "from user_helpers import act\ndef use(x):\n    return act(x)",
    "module": "import user_helpers\ndef use(x):\n    return user_helpers.act(x)",
    "inside the function": "def use(x):\n    from user_helpers import act\n    return act(x)",
    "module inside": "def use(x):\n    import user_helpers as u\n    return u.act(x)",
    "by name": "import user_helpers\ndef use(x):\n    return getattr(user_helpers, 'a' + 'ct')(x)",
    "by way of another": "import user_between\ndef use(x):\n    return user_between.between(x)",
    "in a method's closure": "from user_helpers import act\nuse = (lambda f: lambda x: f(x))(act)",
}


@pytest.mark.parametrize("user", USERS)
def test_functions_of_other_modules(user: str, importable: Callable[..., None]) -> None:
    found = []
    for act in ("return x", "return x", "return x * 2", "return x * K"):
        importable("user_helpers", f"K = 4\nWORD = 'a'\ndef act(x):\n    {act}")
        importable("user_between", "from user_helpers import act\ndef between(x):\n    return act(x)")
        scope: dict[str, Any] = {}
        exec(USERS[user], scope)
        found.append(code(with_attribute("use", scope["use"])()))
    assert found[0] == found[1]
    assert len(set(found)) == 3


def test_unused_contents_of_a_module_do_not_count(importable: Callable[..., None]) -> None:
    found = set()
    for word in ("a", "b"):
        importable("user_helpers", f"WORD = {word!r}\ndef act(x):\n    return x")
        scope: dict[str, Any] = {}
        exec(USERS["module"], scope)
        found.add(code(with_attribute("use", scope["use"])()))
    assert len(found) == 1


def test_a_method_of_a_library_that_was_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    before = code(model)
    monkeypatch.setattr(nn.ReLU, "forward", lambda self, x: x.clamp(0, 6))
    assert code(model) != before


def test_a_function_of_a_library_that_was_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    before = code(defined())
    monkeypatch.setattr(nn.functional, "leaky_relu", lambda x, slope: x)
    assert code(defined()) != before


def test_a_decorator_of_a_library_does_not_hide_a_function() -> None:
    source = BASE.replace("    def forward", "    @torch.no_grad()\n    def forward")
    assert code(defined(source)) != code(defined())
    assert code(defined(source)) != code(defined(source.replace("self.finish(x)\n", "self.finish(x) + 1\n")))


def test_a_mode_that_train_does_not_change_counts() -> None:
    source = BASE + "\n    def train(self, mode=True):\n        return self\n"
    noisy, quiet = defined(source), defined(source)
    quiet.training = False
    assert code(noisy) != code(quiet)


# Weights ----------------------------------------------------------------------------------------------------


def test_weights_and_buffers_that_are_not_saved() -> None:
    def made(value: float, persistent: bool = True) -> nn.Module:
        model = defined()
        model.register_buffer("mask", torch.full((3,), value), persistent=persistent)
        return model

    first = model_identity(made(1.0))
    assert model_identity(made(1.0)) == first
    assert model_identity(made(1.0, persistent=False)) == first
    for other in (made(2.0), made(2.0, persistent=False)):
        assert model_identity(other).weights != first.weights
        assert model_identity(other).code == first.code


def test_one_bit_of_a_weight() -> None:
    model = defined()
    before = model_identity(model)
    with torch.no_grad():
        model.fc.weight[3, 3] = torch.nextafter(model.fc.weight[3, 3], torch.tensor(9.0))
    after = model_identity(model)
    assert after.weights != before.weights
    assert after.code == before.code


def test_tied_weights_are_another_model_than_equal_ones() -> None:
    def pair(tied: bool) -> nn.Module:
        model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
        with torch.no_grad():
            model[0].weight.fill_(1)
            model[1].weight.fill_(1)
        if tied:
            model[1].weight = model[0].weight
        return model

    assert model_identity(pair(True)) == model_identity(pair(True))
    assert model_identity(pair(True)) != model_identity(pair(False))


def test_what_a_weight_norm_has_not_yet_computed_does_not_count() -> None:
    def loaded(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        with pytest.warns(FutureWarning):
            model = torch.nn.utils.weight_norm(nn.Linear(2, 2))
        model.load_state_dict({name: torch.ones_like(value) for name, value in model.state_dict().items()})
        return model

    assert model_identity(loaded(0)) == model_identity(loaded(1))


@pytest.mark.parametrize("shape", [(), (0,), (3, 2), (2, 3, 4, 5)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int64, torch.bool, torch.complex64])
def test_buffers_of_every_kind(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    def made(value: int) -> str:
        model = nn.Module()
        model.register_buffer("it", torch.full(shape, value).to(dtype))
        return model_identity(model).weights

    assert made(0) == made(0)
    assert (made(0) != made(1)) == (0 not in shape)


# What has no hash -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        threading.Lock(),
        (i for i in range(3)),
        memoryview(b"abc"),
        [threading.Lock()],
        functools.partial(print, threading.Lock()),
        maker(threading.Lock()),
    ],
    ids=["lock", "generator", "memory", "in a list", "in a partial", "in a closure"],
)
def test_the_error_names_objects_that_cannot_be_hashed(value: Any) -> None:
    model = nn.Sequential(nn.Linear(2, 2), with_attribute("odd", value)())
    with pytest.raises(Unidentified, match=r"module '1' > attribute 'odd' of a Net"):
        model_identity(model)


class Broken:
    def __reduce__(self) -> str:
        raise ValueError("it does not like it")


def test_state_that_fails_and_infinite_state() -> None:
    with pytest.raises(Unidentified, match=r"odd.*does not like it"):
        model_identity(with_attribute("odd", Broken())())
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(Unidentified, match=r"odd.*nested too deeply"):
        model_identity(with_attribute("odd", deep)())


def test_a_lazy_model_has_none() -> None:
    with pytest.raises(Unidentified, match="not initialized"):
        model_identity(nn.Sequential(nn.LazyLinear(3)))


# Components, data, versions ---------------------------------------------------------------------------------


MEASURE = """
from genmeasures.interfaces import ModelMeasure, Variable
class Mine(ModelMeasure):
    name = "mine"
    variables = (Variable("mine", "mine", 0, dims=()),)
    def __init__(self, scale=1.0):
        self.scale = scale
    def measure(self, model, layers, data):
        return {"mine": self.scale * 2.0}
"""


def component(source: str = MEASURE, make: str = "Mine()") -> str:
    scope: dict[str, Any] = {}
    exec(source, scope)
    return component_identity([eval(make, scope)])[0]


def test_components_are_their_code_and_options() -> None:
    assert component() == component(MEASURE + "\n# and a remark\n")
    others = [component(), component(make="Mine(2.0)"), component(MEASURE.replace("* 2.0", "* 3.0"))]
    others += [component_identity([one])[0] for one in (DaviesBouldin(), DaviesBouldin(KMeans(k=3)), ReceptiveField())]
    assert len(set(others)) == len(others)
    assert component_identity([DaviesBouldin(KMeans(k=3))])[0] == component_identity([DaviesBouldin(KMeans(k=3))])[0]


class Anonymous:
    pass


class WithOption(ModelMeasure):
    name = "with_option"
    variables = (Variable("with_option", "with an option", 0, dims=()),)

    def __init__(self, option: Any = None) -> None:
        self.option = option

    def measure(self, model: nn.Module, layers: Any, data: ModelData) -> dict[str, float]:
        return {"with_option": 0.0}


def test_options_whose_repr_contains_an_address() -> None:
    assert component_identity([WithOption(LONG)]) != component_identity([WithOption(shifted(LONG))])
    for option in (Anonymous(), [Anonymous()], lambda x: x):
        with pytest.raises(Unidentified, match=r"WithOption.*address in memory"):
            component_identity([WithOption(option)])


def test_data_are_inputs_and_targets() -> None:
    def identity(x: Any, y: Any = None, split: Split = "test", batch_size: int = 3) -> str:
        given = (x,) if y is None else (x, y)
        return data_identity({split: DataSource(given, split, batch_size)})

    x, y = np.arange(12, dtype="f4").reshape(6, 2), np.arange(6)
    plain = identity(x, y)
    assert identity(x.copy(), torch.from_numpy(y), batch_size=4) == plain
    changed = y.copy()
    changed[3] = 0
    others = [identity(x), identity(x, changed), identity(x + 1, y), identity(x[:5], y[:5]), identity(x, y, "train")]
    others += [identity(x, y.astype("f4")), identity(x.reshape(6, 1, 2), y)]
    assert len({plain, *others}) == len(others) + 1


def test_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = versions_identity(["torch"])
    assert versions_identity(["torch", "torch"]) == plain
    assert versions_identity(["torch", "numpy"]) != plain
    with monkeypatch.context() as patch:
        patch.setattr("genmeasures.identity.identity.__version__", "9.9")
        assert versions_identity(["torch"]) != plain
    origins.version.cache_clear()
    try:
        monkeypatch.setattr("importlib.metadata.version", lambda name: "9.9")
        assert versions_identity(["torch"]) != plain
    finally:
        origins.version.cache_clear()


def test_where_code_comes_from(importable: Callable[..., None]) -> None:
    importable("user_helpers", "")
    assert origins.origin("torch.nn.functional") == "torch"
    assert origins.origin("sklearn.cluster") == "scikit-learn" or "sklearn.cluster" not in sys.modules
    assert origins.origin("collections.abc") == origins.origin("math") == "python"
    assert origins.origin("user_helpers") is origins.origin("__main__") is origins.origin(None) is None
    assert origins.origin(__name__) is None


def test_a_layer_is_an_ordinary_dataclass() -> None:
    """Objects of the core are of its version, with their contents."""
    layer = Layer(0, "a", "Linear", 1, (), 1, 1, 1.0, "Linear")
    assert code(with_attribute("it", layer)()) == code(with_attribute("it", dataclasses.replace(layer))())
    assert code(with_attribute("it", layer)()) != code(with_attribute("it", dataclasses.replace(layer, index=1))())
