"""A hash of Python objects that is the same in every process: of their contents and code, never of their addresses."""

from __future__ import annotations

import builtins
import collections
import copyreg
import dataclasses
import enum
import functools
import hashlib
import importlib
import importlib.util
import io
import itertools
import logging
import re
import struct
import types
import weakref
import zipfile
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from genmeasures.errors import GenmeasuresError
from genmeasures.identity.bytecode import Import, Read, reads
from genmeasures.identity.origins import PYTHON, origin
from genmeasures.interfaces import Component

DIGEST_SIZE = 10
"""Bytes of a digest."""

_IGNORED_OF_CLASSES = frozenset({
    "__module__", "__qualname__", "__name__", "__doc__", "__dict__", "__weakref__", "__annotations__", "__annotate__",
    "__annotate_func__", "__annotations_cache__", "__abstractmethods__", "_abc_impl", "__orig_bases__",
    "__parameters__", "__type_params__", "__firstlineno__", "__static_attributes__", "__dataclass_params__",
    "__match_args__",
})  # fmt: skip
"""What says nothing of how objects of a class behave."""

_IGNORED_OF_MODULES = frozenset({
    "training", "_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "_is_full_backward_hook",
    "_state_dict_hooks", "_state_dict_pre_hooks", "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks",
    "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_forward_hooks_with_kwargs",
    "_forward_pre_hooks_with_kwargs", "_forward_hooks_always_called", "_version",
})  # fmt: skip
"""Attributes of a ``torch.nn.Module`` that are hashed in a way of their own, or not at all."""

_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
_HEAP_TYPE = 1 << 9
"""Flag of classes that Python code has made."""

_ADDRESS = re.compile(r"\bat 0x[0-9a-fA-F]+")

_NEEDLESS = {
    # The code is that of the class's forward; the graph is what it was made from.
    "torch.fx.graph_module.GraphModule": ("_graph", "meta", "_tracer_extras"),
    # Checks shapes, no more.
    "torch.export._unlift.GuardsFn": ("forward",),
    # Runs the module that it holds, compiled.
    "torch._dynamo.eval_frame.OptimizedModule": (
        "dynamo_ctx",
        "forward",
        "get_compiler_config",
        "_torchdynamo_orig_callable",
        "_torchdynamo_wrapper_id",
    ),
}
"""Attributes of torch's own modules that no value depends on, and that refer to much that has no hash."""

_FINAL = re.compile(rb"\s*\w+ : Final\[")

_DESCRIPTORS = (
    types.WrapperDescriptorType,
    types.MethodDescriptorType,
    types.ClassMethodDescriptorType,
    types.GetSetDescriptorType,
    types.MemberDescriptorType,
)


class Unidentified(GenmeasuresError):
    """An object of which no hash can be made that is sure to change with its behavior."""


class Walk:
    """Feeds objects, and everything that they refer to, into one hash.

    Numbers, texts, containers, tensors and arrays are hashed by value; functions and classes of the user by
    their bytecode, constants, defaults, closures and the globals that they read; those of installed
    distributions by name, with the distribution entered in ``distributions``; other objects by what they
    would be pickled as. Comments, line numbers, file names and module names do not count.

    Raises Unidentified, naming the place, for what fits none of these: locks, open files, generators.
    """

    def __init__(self, distributions: set[str], known: Mapping[int, str] | None = None) -> None:
        self.distributions = distributions
        self._hash = hashlib.blake2b(digest_size=DIGEST_SIZE)
        self._known = known or {}
        """Objects, by id, that are hashed elsewhere, and what stands for them here."""
        self._seen: dict[int, int] = {}
        self._held: list[object] = []
        """Keeps objects alive that are made on the way: an id is used again where its object is gone."""
        self._place: list[str] = []

    def digest(self) -> str:
        """The hash of all that was fed."""
        return self._hash.hexdigest()

    def feed(self, value: object, place: str = "") -> None:
        """Hash an object; ``place`` says in errors where it was found."""
        self._place.append(place)
        try:
            self._any(value)
        except (Unidentified, MemoryError):
            raise
        except RecursionError:
            raise self._unidentified("it is nested too deeply") from None
        except Exception as error:  # pickling calls the user's code, which can fail in any way
            raise self._unidentified(str(error) or type(error).__name__) from error
        self._place.pop()

    def _unidentified(self, reason: str) -> Unidentified:
        where = " > ".join(place for place in self._place if place)
        return Unidentified(f"{where}: {reason}" if where else reason)

    def _tag(self, tag: str, content: bytes | str = b"") -> None:
        data = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
        self._hash.update(b"%s:%d:" % (tag.encode(), len(data)))
        self._hash.update(data)

    # What kind of object -------------------------------------------------------------------------------------

    def _any(self, value: Any) -> None:
        if self._by_value(value):
            return
        if id(value) in self._known:
            return self._tag("known", self._known[id(value)])
        if id(value) in self._seen:
            return self._tag("seen", str(self._seen[id(value)]))
        self._seen[id(value)] = len(self._seen)
        self._held.append(value)
        if isinstance(value, type):
            self._class(value)
        elif isinstance(value, types.FunctionType):
            self._function(value)
        elif isinstance(value, torch.jit.ScriptModule | torch.jit.ScriptFunction):
            self._script(value)
        elif isinstance(value, nn.Module):
            self._module(value)
        elif isinstance(value, Tensor):
            self._tensor(value)
        elif isinstance(value, Component):
            self._component(value)
        elif isinstance(value, types.ModuleType):
            self._namespace(value)
        elif not self._container(value) and not self._callable(value):
            self._object(value)

    def _by_value(self, value: Any) -> bool:
        """Hash what cannot be told from a copy; whether an object is one and the same says nothing of these."""
        kind = type(value)
        if value is None or value is Ellipsis or value is NotImplemented:
            self._tag("constant", repr(value))
        elif kind in (bool, int):
            self._tag(kind.__name__, hex(value))
        elif kind is float:
            self._tag("float", struct.pack("<d", value))
        elif kind is complex:
            self._tag("complex", struct.pack("<dd", value.real, value.imag))
        elif kind in (str, bytes):
            self._tag(kind.__name__, value)
        elif kind is tuple:
            self._items("tuple", value)
        elif kind in (set, frozenset):
            self._tag("set", "".join(sorted(self._alone(item) for item in value)))
        elif kind is types.CodeType:
            self._code(value, None)
        elif isinstance(value, torch.dtype | torch.device | torch.layout | torch.memory_format | np.dtype):
            self._tag(kind.__name__, str(value))
        elif isinstance(value, torch._ops.OpOverload | torch._ops.OpOverloadPacket):
            self._tag("operator", str(value))
        elif isinstance(value, np.generic) and value.dtype != object:
            self._tag("scalar", f"{value.dtype} ".encode() + value.tobytes())
        elif isinstance(value, enum.Enum):
            self.feed(type(value))
            self._tag("member", str(value.name))
        elif isinstance(value, types.MethodType):
            self._tag("method")
            self.feed(value.__func__)
            self.feed(value.__self__)
        else:
            return False
        return True

    def _alone(self, value: object) -> str:
        """The hash of a member of a set, whatever the order of the set."""
        walk = Walk(self.distributions, self._known)
        walk._seen = dict(self._seen)
        walk._place = list(self._place)
        walk.feed(value)
        self._held += walk._held
        return walk.digest()

    def _items(self, tag: str, items: Iterable[object]) -> None:
        values = list(items)
        self._tag(tag, str(len(values)))
        for value in values:
            self.feed(value)

    def _pairs(self, tag: str, pairs: Iterable[tuple[Any, Any]]) -> None:
        found = list(pairs)
        self._tag(tag, str(len(found)))
        for key, value in found:
            self.feed(key)
            self.feed(value, str(key) if isinstance(key, str) else "")

    def _container(self, value: Any) -> bool:
        kind = type(value)
        if kind in (list, collections.deque):
            self._items(kind.__name__, value)
        elif kind in (dict, collections.OrderedDict, types.MappingProxyType):
            self._pairs("dict", value.items())
        elif kind is bytearray:
            self._tag("bytearray", bytes(value))
        elif isinstance(value, np.ndarray):
            self._array(value)
        elif isinstance(value, weakref.ReferenceType):
            self._tag("reference")
            self.feed(value())
        elif isinstance(value, torch.Generator):
            self._tag("generator", bytes(value.get_state().numpy()))
        elif isinstance(value, logging.Logger | logging.LoggerAdapter):
            self._tag("logger")  # it changes no value
        else:
            return False
        return True

    def _callable(self, value: Any) -> bool:
        if isinstance(value, types.BuiltinFunctionType | types.MethodWrapperType):
            owner = value.__self__
            if isinstance(owner, types.ModuleType) or owner is None:
                module = getattr(value, "__module__", None) or getattr(owner, "__name__", None)
                if not self._installed(module):
                    raise self._unidentified("it is compiled code of no installed distribution")
                self._tag("builtin", f"{module}.{value.__qualname__}")
            else:
                self._tag("builtin", value.__qualname__)
                self.feed(owner)
        elif type(value).__name__ == "cython_function_or_method":
            if not self._installed(value.__module__):
                raise self._unidentified("it is compiled code of no installed distribution")
            self._tag("builtin", f"{value.__module__}.{value.__qualname__}")
        elif isinstance(value, _DESCRIPTORS):
            compiled = isinstance(value, types.MethodDescriptorType | types.ClassMethodDescriptorType)
            if compiled and origin(value.__objclass__.__module__) is None:
                raise self._unidentified("it is compiled code of no installed distribution")
            self._tag("descriptor", value.__name__)
            self.feed(value.__objclass__)
        elif isinstance(value, staticmethod | classmethod):
            self._tag(type(value).__name__)
            self.feed(value.__func__)
        elif isinstance(value, property):
            self._tag("property")
            self._items("accessors", (value.fget, value.fset, value.fdel))
        elif isinstance(value, functools.cached_property):
            self._tag("cached property")
            self.feed(value.func)
        elif isinstance(value, functools._lru_cache_wrapper):
            self._tag("cache")
            self.feed(value.__wrapped__)
        elif isinstance(value, functools.partial):
            self._items("partial", (type(value), value.func, value.args, value.keywords, vars(value)))
        elif isinstance(value, types.CellType):
            self._cell(value)
        else:
            return False
        return True

    # Code ----------------------------------------------------------------------------------------------------

    def _installed(self, module: str | None) -> bool:
        """Enter the distribution of a module; False for code of the user."""
        found = origin(module)
        if found is None:
            return False
        self.distributions.add(found)
        return True

    def _function(self, function: types.FunctionType) -> None:
        module = function.__globals__.get("__name__")
        code = function.__code__
        if self._installed(module):
            # Its name as it was written: functools.wraps gives decorators of libraries the names of what they wrap.
            self._tag("installed function", f"{module}.{code.co_qualname}")
            # A function defined in a function: a decorator's, which calls the user's.
            if function.__closure__:
                self._items("closure", function.__closure__)
            return
        self._tag("function")
        self._code(code, function.__doc__)
        for what in (function.__defaults__, function.__kwdefaults__):
            self.feed(what, "defaults")
        self._cells(code, function.__closure__ or ())
        self._pairs("attributes", sorted((k, v) for k, v in vars(function).items() if k != "__wrapped__"))
        for inner in _with_inner(code):
            for read in reads(inner):
                self._read(read, function.__globals__)

    def _cells(self, code: types.CodeType, cells: tuple[types.CellType, ...]) -> None:
        for name, cell in zip(code.co_freevars, cells, strict=True):
            self.feed(cell, f"variable {name}")

    def _cell(self, cell: types.CellType) -> None:
        self._tag("cell")
        try:
            content = cell.cell_contents
        except ValueError:  # assigned later, or never
            return
        self.feed(content)

    def _code(self, code: types.CodeType, doc: str | None) -> None:
        """Bytecode and constants, without the docstring, line numbers and names of files."""
        constants = list(code.co_consts)
        if doc is not None and constants and constants[0] == doc:
            constants[0] = None
        numbers = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags)
        self._tag("code", code.co_code)
        self._tag("exceptions", code.co_exceptiontable)
        self._items("code", (numbers, code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars, *constants))

    def _read(self, read: Read | Import, names: Mapping[str, Any]) -> None:
        if isinstance(read, Import):
            return self._import(read, names)
        if read.name in names:
            self._resolved(names[read.name], read.attributes, f"global {read.name}")
        elif hasattr(builtins, read.name):
            self._tag("built in", read.name)
        else:
            self._tag("missing", read.name)

    def _import(self, read: Import, names: Mapping[str, Any]) -> None:
        package = names.get("__package__") or ""
        try:
            name = importlib.util.resolve_name("." * read.level + read.module, package) if read.level else read.module
            module: Any = importlib.import_module(name)  # as the function itself would
        except ImportError:
            return self._tag("missing", read.module)
        for attribute in read.names:
            if not hasattr(module, attribute):
                try:
                    importlib.import_module(f"{name}.{attribute}")
                except ImportError:
                    self._tag("missing", attribute)
                    continue
            self._resolved(module, (attribute,), f"module {name}")
        if not read.names:
            self._resolved(module, (), f"module {name}")
        return None

    def _resolved(self, value: Any, attributes: tuple[str, ...], place: str) -> None:
        """A global, or what its attributes lead to while it is a module: other contents of a module do not count."""
        owner: types.ModuleType | None = None
        for attribute in attributes:
            if not isinstance(value, types.ModuleType):
                break
            if not hasattr(value, attribute):
                return self._tag("missing", attribute)
            owner, value = value, getattr(value, attribute)
            place += f".{attribute}"
        self._tag("read")
        if owner is not None and self._installed(owner.__name__) and not self._is_telling(value):
            return self._tag("installed", place)  # settled by the version of the distribution
        return self.feed(value, place)

    @staticmethod
    def _is_telling(value: object) -> bool:
        """Whether something of an installed module is hashed by itself: the user may have put it there."""
        kinds = (type, types.FunctionType, types.BuiltinFunctionType, types.ModuleType, functools.partial)
        return isinstance(value, (*kinds, bool, int, float, str, bytes, tuple, Tensor, np.ndarray, nn.Module))

    def _namespace(self, module: types.ModuleType) -> None:
        """A module that is handed around: any of its contents may be used."""
        if self._installed(module.__name__):
            return self._tag("installed module", module.__name__)
        contents = sorted((name, value) for name, value in vars(module).items() if not name.startswith("__"))
        self._tag("module", str(len(contents)))
        for name, value in contents:
            self._tag("name", name)
            self.feed(value, f"{module.__name__}.{name}")
        return None

    def _class(self, cls: type) -> None:
        if cls.__module__ == "builtins" and not cls.__flags__ & _HEAP_TYPE:
            return self._tag("built in", cls.__name__)
        # A class made by exec() in a namespace without a name says that it is a builtin.
        own = cls.__module__ == "builtins" or not self._installed(cls.__module__)
        self._tag("class", cls.__name__ if own else f"{cls.__module__}.{cls.__qualname__}")
        if not own and origin(cls.__module__) == PYTHON:
            return None
        self._items("bases", cls.__bases__)
        if type(cls) is not type:
            self.feed(type(cls))
        for name, value in sorted(vars(cls).items()):
            if name in _IGNORED_OF_CLASSES:
                continue
            if own and name == "__dataclass_fields__":
                self._pairs("fields", ((k, _field(v)) for k, v in value.items()))
            elif own or any(origin(f.__globals__.get("__name__")) is None for f in _functions_of(value)):
                # The second: a method that the user's code has put in place of the library's.
                self._tag("attribute", name)
                self.feed(value, f"{cls.__name__}.{name}")
        return None

    # Objects -------------------------------------------------------------------------------------------------

    def _module(self, module: nn.Module) -> None:
        cls = type(module)
        self.feed(cls)
        attributes = {name: value for name, value in vars(module).items() if name not in _IGNORED_OF_MODULES}
        for known, needless in _NEEDLESS.items():
            if any(f"{base.__module__}.{base.__name__}" == known for base in cls.__mro__):
                attributes = {name: value for name, value in attributes.items() if name not in needless}
        for hook in module._forward_pre_hooks.values():
            # What old weight and spectral norms compute from other tensors as soon as the model runs.
            if type(hook).__module__ in ("torch.nn.utils.weight_norm", "torch.nn.utils.spectral_norm"):
                attributes.pop(hook.name, None)  # type: ignore[attr-defined]
        if cls.train is not nn.Module.train or cls.eval is not nn.Module.eval:
            attributes["training"] = module.training  # its own methods decide whether evaluation changes it
        for name in sorted(attributes):
            self._tag("attribute", name)
            self.feed(attributes[name], f"attribute {name!r} of a {cls.__name__}")
        for kind in _HOOKS:
            self._items(kind, vars(module).get(kind, {}).values())
        for kind in ("_parameters", "_buffers"):
            self._pairs(kind, vars(module)[kind].items())
        children = module._modules
        self._tag("modules", str(len(children)))
        for name, child in children.items():
            self._tag("name", name)
            self.feed(child, f"module {name!r}")

    def _script(self, module: Any) -> None:
        """The archive that TorchScript writes, without what it says of lines and files."""
        self._tag("script")
        with zipfile.ZipFile(io.BytesIO(module.save_to_buffer())) as archive:
            for name in sorted(archive.namelist()):
                if name.endswith((".debug_pkl", "/.data/serialization_id")):
                    continue
                content = archive.read(name)
                if name.endswith(".py"):  # constants are declared in the order of a set
                    lines = content.splitlines()
                    content = b"\n".join(
                        [*sorted(filter(_FINAL.match, lines)), *itertools.filterfalse(_FINAL.match, lines)]
                    )
                self._tag(name.partition("/")[2], content)

    def _component(self, component: Component) -> None:
        text = repr(component)
        if has_address(text):
            # Random numbers of a component are drawn by what it is called.
            raise self._unidentified(
                f"an option of {type(component).__name__} is shown with its place in memory: give its class a __repr__"
            )
        self._tag("component", text)
        self.feed(type(component))
        self._pairs("options", sorted(component.options().items()))

    def _tensor(self, tensor: Tensor) -> None:
        if type(tensor) not in (Tensor, nn.Parameter, nn.Buffer):
            self.feed(type(tensor))
            if hasattr(tensor, "__tensor_flatten__"):
                names, context = tensor.__tensor_flatten__()
                self.feed(context)
                return self._pairs("inner", ((name, getattr(tensor, name)) for name in names))
            self._pairs("attributes", sorted(vars(tensor).items()))
        for part in tensor_contents(tensor):
            self._tag("tensor")
            self._hash.update(part)
        return None

    def _array(self, array: np.ndarray[Any, Any]) -> None:
        if type(array) is not np.ndarray:
            self.feed(type(array))
        self._tag("array", f"{array.dtype.str} {array.dtype.descr} {array.shape}")
        if array.dtype.hasobject:
            self._items("objects", array.ravel().tolist())
        else:
            self._hash.update(array.tobytes())

    def _object(self, value: Any) -> None:
        """Class and state, as they would be pickled."""
        reducer: Callable[[Any], Any] | None = copyreg.dispatch_table.get(type(value))
        reduced = reducer(value) if reducer is not None else value.__reduce_ex__(4)
        self._tag("object")
        self.feed(type(value))
        if isinstance(reduced, str):
            return self._tag("name", reduced)
        function, arguments, state, items, pairs = (list(reduced) + 3 * [None])[:5]
        self.feed(function)
        self._items("arguments", arguments)
        attributes: dict[str, Any] | None = getattr(value, "__dict__", None)
        if state is None or (isinstance(state, dict) and not state):
            self._tag("no state")  # exceptions have none, or an empty one once it was asked for
        elif attributes is not None and state is attributes:
            self._tag("state")
            for name, one in sorted(attributes.items()):
                self._tag("attribute", name)
                self.feed(one, f"{type(value).__name__}.{name}")
        else:
            self.feed(state)
        self._items("items", items or ())
        self._pairs("pairs", pairs or ())
        return None


def tensor_contents(tensor: Tensor) -> list[Any]:
    """Type, shape and bytes of a tensor, as parts to feed into a hash.

    Raises Unidentified for one without values: a lazy parameter, or one on the device "meta".
    """
    if nn.parameter.is_lazy(tensor) or tensor.is_meta:
        raise Unidentified("a tensor is not initialized")
    tensor = tensor.detach()
    head = f"{tensor.dtype} {tensor.layout} {tuple(tensor.shape)} "
    if tensor.is_nested:
        return [head.encode(), *(part for one in tensor.unbind() for part in tensor_contents(one))]
    if tensor.layout == torch.sparse_coo:
        tensor = tensor.coalesce()
        return [head.encode(), *tensor_contents(tensor.indices()), *tensor_contents(tensor.values())]
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        parts = (tensor.crow_indices(), tensor.col_indices(), tensor.values())
        return [head.encode(), *(part for one in parts for part in tensor_contents(one))]
    if tensor.is_quantized:
        if tensor.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric):
            scale: list[Any] = [f"{tensor.q_scale()!r} {tensor.q_zero_point()}".encode()]
        else:
            per_channel = (tensor.q_per_channel_scales(), tensor.q_per_channel_zero_points())
            scale = [f"{tensor.q_per_channel_axis()}".encode(), *(p for t in per_channel for p in tensor_contents(t))]
        return [head.encode(), *scale, *tensor_contents(tensor.int_repr())]
    flat = tensor.cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
    return [head.encode(), flat.view(torch.uint8).numpy()] if flat.numel() else [head.encode()]


def has_address(text: str) -> bool:
    """Whether a representation has a place in memory, which is another one in each process: ``<X object at 0x7f…>``."""
    return _ADDRESS.search(text) is not None


def _with_inner(code: types.CodeType) -> list[types.CodeType]:
    """A code object and those of the functions defined in it."""
    inner = [one for one in code.co_consts if isinstance(one, types.CodeType)]
    return [code, *(found for one in inner for found in _with_inner(one))]


def _functions_of(value: object) -> list[types.FunctionType]:
    """The Python functions behind an attribute of a class."""
    if isinstance(value, property):
        return [one for one in (value.fget, value.fset, value.fdel) if isinstance(one, types.FunctionType)]
    if isinstance(value, staticmethod | classmethod):
        value = value.__func__
    return [value] if isinstance(value, types.FunctionType) else []


def _field(field: dataclasses.Field[Any]) -> tuple[object, ...]:
    """What a field of a dataclass says, but for its type."""
    return (field.default, field.default_factory, field.init, field.kw_only, field.metadata, str(field._field_type))  # type: ignore[attr-defined]
