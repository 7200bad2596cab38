"""Hash of the contents and code of Python objects, equal in every process."""

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
"""Attributes of a class that do not affect the behavior of its objects."""

_IGNORED_OF_MODULES = frozenset({
    "training", "_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "_is_full_backward_hook",
    "_state_dict_hooks", "_state_dict_pre_hooks", "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks",
    "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_forward_hooks_with_kwargs",
    "_forward_pre_hooks_with_kwargs", "_forward_hooks_always_called", "_version",
})  # fmt: skip
"""Attributes of a ``torch.nn.Module`` that are hashed separately, or not at all."""

_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
_HEAP_TYPE = 1 << 9
"""Flag of classes created by Python code."""

_COMPILED = "it is compiled code that does not belong to an installed distribution"

_ADDRESS = re.compile(r"\bat 0x[0-9a-fA-F]+")

_NEEDLESS = {
    # Its code is the forward method of its class, which is generated from the graph.
    "torch.fx.graph_module.GraphModule": ("_graph", "meta", "_tracer_extras"),
    # Only checks shapes.
    "torch.export._unlift.GuardsFn": ("forward",),
    # Runs a compiled version of the module that it holds.
    "torch._dynamo.eval_frame.OptimizedModule": (
        "dynamo_ctx",
        "forward",
        "get_compiler_config",
        "_torchdynamo_orig_callable",
        "_torchdynamo_wrapper_id",
    ),
}
"""Attributes of torch's modules that no value depends on, and that refer to objects that cannot be hashed."""

_FINAL = re.compile(rb"\s*\w+ : Final\[")

_DESCRIPTORS = (
    types.WrapperDescriptorType,
    types.MethodDescriptorType,
    types.ClassMethodDescriptorType,
    types.GetSetDescriptorType,
    types.MemberDescriptorType,
)


class Unidentified(GenmeasuresError):
    """An object has no hash that is guaranteed to change with its behavior."""


class Walk:
    """Hash of objects and everything that they refer to.

    Numbers, strings, containers, tensors and arrays are hashed by value; functions and classes of the user by
    their bytecode, constants, defaults, closures and the globals that they read; those of installed
    distributions by name, with the distribution added to ``distributions``; other objects by their pickled
    state. The hash does not depend on comments, line numbers, file names and module names.

    Args:
        distributions: Set to which the distributions of installed code are added.
        references: Objects that are hashed elsewhere, by id, with the text that represents them in this hash.

    Raises:
        Unidentified: An object cannot be hashed, such as a lock, an open file or a generator. The message says how
            it was reached.

    Example:
        >>> def digest(value):
        ...     walk = Walk(set())
        ...     walk.feed(value)
        ...     return walk.digest()
        >>> digest([1, {"a": 2}]) == digest([1, {"a": 2}]), digest([1]) == digest((1,))
        (True, False)
    """

    def __init__(self, distributions: set[str], references: Mapping[int, str] | None = None) -> None:
        self.distributions = distributions
        self._hash = hashlib.blake2b(digest_size=DIGEST_SIZE)
        self._references = references or {}
        self._seen: dict[int, int] = {}
        """Order in which objects were first met, by id."""
        self._held: list[object] = []
        """Keeps temporary objects alive, so that no id is reused."""
        self._path: list[str] = []
        """Path to the present object, for errors."""

    def digest(self) -> str:
        """Return the hash of all objects fed so far."""
        return self._hash.hexdigest()

    def feed(self, value: object, path: str = "") -> None:
        """Add an object to the hash.

        Args:
            value: The object.
            path: Where it is referred to, for errors.

        Raises:
            Unidentified: The object, or one that it refers to, cannot be hashed.
        """
        self._path.append(path)
        try:
            self._any(value)
        except (Unidentified, MemoryError):
            raise
        except RecursionError:
            raise self._unidentified("it is nested too deeply") from None
        except Exception as error:  # pickling calls user code, which may raise anything
            raise self._unidentified(str(error) or type(error).__name__) from error
        self._path.pop()

    def _unidentified(self, reason: str) -> Unidentified:
        where = " > ".join(part for part in self._path if part)
        return Unidentified(f"{where}: {reason}" if where else reason)

    def _tag(self, tag: str, content: bytes | str = b"") -> None:
        data = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
        self._hash.update(b"%s:%d:" % (tag.encode(), len(data)))
        self._hash.update(data)

    # What kind of object -------------------------------------------------------------------------------------

    def _any(self, value: Any) -> None:
        if self._by_value(value):
            return
        if id(value) in self._references:
            return self._tag("known", self._references[id(value)])
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
        """Hash an immutable value, for which identity does not matter; False for other objects."""
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
        """Hash of an element of a set, independent of the order of the set."""
        walk = Walk(self.distributions, self._references)
        walk._seen = dict(self._seen)
        walk._path = list(self._path)
        walk.feed(value)
        self._held += walk._held
        return walk.digest()

    def _items(self, tag: str, items: Iterable[object]) -> None:
        values = list(items)
        self._tag(tag, str(len(values)))
        for value in values:
            self.feed(value)

    def _pairs(self, tag: str, pairs: Iterable[tuple[Any, Any]]) -> None:
        items = list(pairs)
        self._tag(tag, str(len(items)))
        for key, value in items:
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
            self._tag("logger")  # no value depends on it
        else:
            return False
        return True

    def _callable(self, value: Any) -> bool:
        if isinstance(value, types.BuiltinFunctionType | types.MethodWrapperType):
            owner = value.__self__
            if isinstance(owner, types.ModuleType) or owner is None:
                module = getattr(value, "__module__", None) or getattr(owner, "__name__", None)
                if not self._installed(module):
                    raise self._unidentified(_COMPILED)
                self._tag("builtin", f"{module}.{value.__qualname__}")
            else:
                self._tag("builtin", value.__qualname__)
                self.feed(owner)
        elif type(value).__name__ == "cython_function_or_method":
            if not self._installed(value.__module__):
                raise self._unidentified(_COMPILED)
            self._tag("builtin", f"{value.__module__}.{value.__qualname__}")
        elif isinstance(value, _DESCRIPTORS):
            compiled = isinstance(value, types.MethodDescriptorType | types.ClassMethodDescriptorType)
            if compiled and origin(value.__objclass__.__module__) is None:
                raise self._unidentified(_COMPILED)
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
        """Add the distribution of a module; False for user code."""
        distribution = origin(module)
        if distribution is None:
            return False
        self.distributions.add(distribution)
        return True

    def _function(self, function: types.FunctionType) -> None:
        module = function.__globals__.get("__name__")
        code = function.__code__
        if self._installed(module):
            # The name in the source, because functools.wraps gives a library's decorators the names of user functions.
            self._tag("installed function", f"{module}.{code.co_qualname}")
            # A function defined in another one may be that of a decorator, which calls a function of the user.
            if function.__closure__:
                self._items("closure", function.__closure__)
            return
        self._tag("function")
        self._code(code, function.__doc__)
        for defaults in (function.__defaults__, function.__kwdefaults__):
            self.feed(defaults, "defaults")
        self._cells(code, function.__closure__ or ())
        self._pairs("attributes", sorted((k, v) for k, v in vars(function).items() if k != "__wrapped__"))
        for inner in _with_inner(code):
            for read in reads(inner):
                self._read(read, function.__globals__)

    def _cells(self, code: types.CodeType, cells: tuple[types.CellType, ...]) -> None:
        """Hash the variables of a closure."""
        for name, cell in zip(code.co_freevars, cells, strict=True):
            self.feed(cell, f"variable {name}")

    def _cell(self, cell: types.CellType) -> None:
        self._tag("cell")
        try:
            content = cell.cell_contents
        except ValueError:  # not assigned yet
            return
        self.feed(content)

    def _code(self, code: types.CodeType, doc: str | None) -> None:
        """Hash bytecode and constants, without the docstring, line numbers and file names."""
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

    def _resolved(self, value: Any, attributes: tuple[str, ...], path: str) -> None:
        """Hash a global, or for a module only the attribute of it that is read."""
        owner: types.ModuleType | None = None
        for attribute in attributes:
            if not isinstance(value, types.ModuleType):
                break
            if not hasattr(value, attribute):
                return self._tag("missing", attribute)
            owner, value = value, getattr(value, attribute)
            path += f".{attribute}"
        self._tag("read")
        if owner is not None and self._installed(owner.__name__) and not self._is_telling(value):
            return self._tag("installed", path)  # identified by the version of the distribution
        return self.feed(value, path)

    @staticmethod
    def _is_telling(value: object) -> bool:
        """Whether an attribute of an installed module is hashed by itself, because the user may have replaced it."""
        kinds = (type, types.FunctionType, types.BuiltinFunctionType, types.ModuleType, functools.partial)
        return isinstance(value, (*kinds, bool, int, float, str, bytes, tuple, Tensor, np.ndarray, nn.Module))

    def _namespace(self, module: types.ModuleType) -> None:
        """Hash a module that is used as an object, so that any of its contents may be used."""
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
        # A class created by exec() in a namespace without __name__ claims to be a builtin.
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
                # The second condition: a method of the library that user code has replaced.
                self._tag("attribute", name)
                self.feed(value, f"{cls.__name__}.{name}")
        return None

    # Objects -------------------------------------------------------------------------------------------------

    def _module(self, module: nn.Module) -> None:
        cls = type(module)
        self.feed(cls)
        attributes = {name: value for name, value in vars(module).items() if name not in _IGNORED_OF_MODULES}
        for cls_name, needless in _NEEDLESS.items():
            if any(f"{base.__module__}.{base.__name__}" == cls_name for base in cls.__mro__):
                attributes = {name: value for name, value in attributes.items() if name not in needless}
        for hook in module._forward_pre_hooks.values():
            # The old weight and spectral norms recompute this attribute whenever the model runs.
            if type(hook).__module__ in ("torch.nn.utils.weight_norm", "torch.nn.utils.spectral_norm"):
                attributes.pop(hook.name, None)  # type: ignore[attr-defined]
        if cls.train is not nn.Module.train or cls.eval is not nn.Module.eval:
            attributes["training"] = module.training  # overridden methods may ignore evaluation mode
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
        """Hash the archive that TorchScript writes, without lines and file names."""
        self._tag("script")
        with zipfile.ZipFile(io.BytesIO(module.save_to_buffer())) as archive:
            for name in sorted(archive.namelist()):
                if name.endswith((".debug_pkl", "/.data/serialization_id")):
                    continue
                content = archive.read(name)
                if name.endswith(".py"):  # the order in which constants are declared is random
                    lines = content.splitlines()
                    content = b"\n".join(
                        [*sorted(filter(_FINAL.match, lines)), *itertools.filterfalse(_FINAL.match, lines)]
                    )
                self._tag(name.partition("/")[2], content)

    def _component(self, component: Component) -> None:
        text = repr(component)
        if has_address(text):
            # The repr seeds the random numbers of a component.
            raise self._unidentified(
                f"the repr of an option of {type(component).__name__} contains its address in memory: define __repr__ "
                "in its class"
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
        """Hash the class and state of an object, as they would be pickled."""
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
            self._tag("no state")  # an exception has none, or an empty one after the first access
        elif attributes is not None and state is attributes:
            self._tag("state")
            for name, attribute in sorted(attributes.items()):
                self._tag("attribute", name)
                self.feed(attribute, f"{type(value).__name__}.{name}")
        else:
            self.feed(state)
        self._items("items", items or ())
        self._pairs("pairs", pairs or ())
        return None


def tensor_contents(tensor: Tensor) -> list[Any]:
    """Return the dtype, layout, shape and bytes of a tensor, as parts of a hash.

    Args:
        tensor: Any tensor.

    Raises:
        Unidentified: The tensor has no values: it is a lazy parameter, or on the device "meta".

    Example:
        >>> head, values = tensor_contents(torch.tensor([1, 2], dtype=torch.int8))
        >>> head, values.tolist()
        (b'torch.int8 torch.strided (2,) ', [1, 2])
    """
    if nn.parameter.is_lazy(tensor) or tensor.is_meta:
        raise Unidentified("a tensor is not initialized")
    tensor = tensor.detach()
    head = f"{tensor.dtype} {tensor.layout} {tuple(tensor.shape)} "
    if tensor.is_nested:
        return [head.encode(), *(part for component in tensor.unbind() for part in tensor_contents(component))]
    if tensor.layout == torch.sparse_coo:
        tensor = tensor.coalesce()
        return [head.encode(), *tensor_contents(tensor.indices()), *tensor_contents(tensor.values())]
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        parts = (tensor.crow_indices(), tensor.col_indices(), tensor.values())
        return [head.encode(), *(part for component in parts for part in tensor_contents(component))]
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
    """Whether a ``repr`` contains an address in memory, which differs between processes.

    Example:
        >>> has_address(repr(object())), has_address("Confidence()")
        (True, False)
    """
    return _ADDRESS.search(text) is not None


def _with_inner(code: types.CodeType) -> list[types.CodeType]:
    """A code object and those of the functions defined in it."""
    inner = [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
    return [code, *(nested for function in inner for nested in _with_inner(function))]


def _functions_of(value: object) -> list[types.FunctionType]:
    """The Python functions behind an attribute of a class."""
    if isinstance(value, property):
        accessors = (value.fget, value.fset, value.fdel)
        return [accessor for accessor in accessors if isinstance(accessor, types.FunctionType)]
    if isinstance(value, staticmethod | classmethod):
        value = value.__func__
    return [value] if isinstance(value, types.FunctionType) else []


def _field(field: dataclasses.Field[Any]) -> tuple[object, ...]:
    """Options of a dataclass field, except for its type."""
    return (field.default, field.default_factory, field.init, field.kw_only, field.metadata, str(field._field_type))  # type: ignore[attr-defined]
