"""Snapshots of the state of a model, in its modules and beside them, and their restoration."""

from __future__ import annotations

import argparse
import sys
import types
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from itertools import zip_longest
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from genmeasures.generators import generator_of

_ELEMENTS = 10_000
"""Containers with more elements are restored, but their elements are not visited."""
_OBJECTS = 100_000
"""Maximum number of objects visited, nearest to the modules first: some models refer to a trainer and its data."""
_CONTENT_BYTES = 1 << 29
"""Bytes of contents kept of tensors and arrays that are neither parameters nor buffers, the nearest first."""
_WASTE = 2
"""Memory shared by parameters is copied as one block unless it is more than this many times as large as they are."""

_PLAIN_OBJECTS = (types.SimpleNamespace, argparse.Namespace)
"""Classes of the standard library whose objects are visited. Others belong to the process, such as loggers."""


def keep(model: nn.Module, device: torch.device, undo: ExitStack) -> None:
    """Take a snapshot of a model and register its restoration; from now on the model runs on copies of its parameters.

    The snapshot covers everything that can be reached from the model's modules through attributes, ``dict``,
    ``list``, ``tuple``, ``set``, ``deque`` and plain objects: registered parameters, buffers, modules and
    hooks, plain attributes of any kind, the classes of the modules and the attributes of these classes,
    gradients, ``requires_grad``, and the states of random generators. It holds the elements of containers and
    the contents of tensors and arrays.

    Parameters get new memory, so that the originals are never written to, neither through ``.data`` nor when
    an adapter is merged into a weight, and are restored to the bit without a comparison. Parameters on
    another device are not copied, because moving them gives them new memory anyway. The contents of other
    tensors are copied, and written back if they changed. Tensors created in inference mode, which autograd
    rejects, are replaced by plain copies.

    Not covered: objects held by closures, by caches of functions, by objects of the standard library or of
    C++, and objects beyond the limits at the top of this module.

    Args:
        model: The model.
        device: Device that the model is going to run on.
        undo: Stack that restores the model when it is closed.

    Example:
        >>> net = nn.Linear(2, 2)
        >>> weight = net.weight.detach().clone()
        >>> with ExitStack() as undo:
        ...     keep(net, torch.device("cpu"), undo)
        ...     net.weight.data.zero_()
        ...     net.scale = 3.0
        tensor([[0., 0.],
                [0., 0.]])
        >>> torch.equal(net.weight, weight), hasattr(net, "scale")
        (True, False)
    """
    keeper = _Keeper(model, device)
    undo.callback(keeper.restore)
    keeper.keep()


class _Keeper:
    """A walk over the state of a model that collects calls to restore it."""

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self._model = model
        self._notes: list[tuple[Callable[..., object], tuple[Any, ...]]] = []
        """Functions that restore the state, with their arguments."""
        self._device = device
        self._registered = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
        self._seen: dict[int, object] = {}
        """Visited objects by id; kept alive, so that no id is reused."""
        self._waiting: deque[object] = deque()
        self._containers: list[Any] = []
        self._copied: list[Tensor] = []
        """Parameters that get new memory."""
        self._plain: dict[int, Tensor] = {}
        """Replacements of tensors created in inference mode, by the id of the original."""
        self._content_bytes = _CONTENT_BYTES

    def restore(self) -> None:
        """Restore everything, also if some of it fails or is interrupted; the first error is raised at the end."""
        failure: BaseException | None = None
        for restore, arguments in reversed(self._notes):
            try:
                restore(*arguments)
            except BaseException as error:
                failure = failure or error
        if failure is not None:
            raise failure

    def keep(self) -> None:
        """Visit all reachable objects, record how to restore them, and copy the parameters."""
        for module in self._model.modules():
            self._look(module)
        # Those of a scripted module are in C++ and cannot be reached through attributes.
        self._look_at((*self._model.parameters(), *self._model.buffers()))
        while self._waiting and len(self._seen) < _OBJECTS:
            self._keep(self._waiting.popleft())
        for tensor, copy in zip(self._copied, _copies([tensor.data for tensor in self._copied]), strict=True):
            tensor.data = copy
        for container in self._containers if self._plain else ():
            kind, _ = _containers(container)
            for key, value in list(kind.items(container) if issubclass(kind, dict) else enumerate(container)):
                kind.__setitem__(container, key, self._without_inference(value))

    def _note(self, restore: Callable[..., object], *arguments: Any) -> None:
        self._notes.append((restore, arguments))

    def _look_at(self, values: Iterable[object]) -> None:
        for value in values:
            self._look(value)

    def _look(self, value: object) -> None:
        if value is not None and type(value) not in _ATOMS and id(value) not in self._seen:
            self._seen[id(value)] = value
            self._waiting.append(value)

    def _keep(self, value: object) -> None:
        if type(value) in _CONTAINERS:  # the most frequent kind, and the fastest check
            self._keep_container(value)
        elif isinstance(value, Tensor):
            self._keep_tensor(value)
        elif isinstance(value, nn.Module):
            self._keep_module(value)
        elif isinstance(value, tuple | frozenset):
            self._look_at(value)
        elif isinstance(value, np.ndarray):
            self._keep_array(value)
        elif (generator := generator_of(value)) is not None:
            self._note(generator.set, generator.get())
        else:
            if isinstance(value, dict | list | set | deque):
                self._keep_container(value)
            if isinstance(value, _PLAIN_OBJECTS) or not _is_foreign(type(value)):
                self._keep_attributes(value)

    def _keep_module(self, module: nn.Module) -> None:
        self._note(_restore_module, module, type(module), module.training)
        self._keep_container(vars(module))
        for cls in type(module).__mro__:
            if cls is nn.Module:
                break
            if not _is_foreign(cls) and id(cls) not in self._seen:
                self._seen[id(cls)] = cls
                self._note(_restore_class, cls, dict(vars(cls)))
                values = (value for name, value in vars(cls).items() if not name.startswith("__"))
                self._look_at(value for value in values if isinstance(value, dict | list | set | deque | Tensor))

    def _keep_attributes(self, value: object) -> None:
        attributes = getattr(value, "__dict__", None)
        if isinstance(attributes, dict):
            self._keep_container(attributes)
        slots = [slot for cls in type(value).__mro__ for slot in _slots(cls)]
        if slots:
            before = {slot: getattr(value, slot) for slot in slots if hasattr(value, slot)}
            self._note(_restore_slots, value, slots, before)
            self._look_at(before.values())

    def _keep_container(self, container: Any) -> None:
        kind, restore = _containers(container)
        elements = list(kind.items(container) if issubclass(kind, dict) else kind.__iter__(container))
        self._notes.append((restore, (container, elements)))
        if not elements:  # the usual case: a module has a dozen empty containers of hooks
            return
        if kind is not set:
            self._containers.append(container)
        if len(elements) <= _ELEMENTS:
            self._look_at([value for _, value in elements] if issubclass(kind, dict) else elements)

    def _keep_tensor(self, tensor: Tensor) -> None:
        self._keep_container(tensor.__dict__)
        if is_lazy(tensor) or not _is_plain(tensor):
            return
        if tensor.is_inference():
            self._stand_in(tensor)
            return
        registered = id(tensor) in self._registered
        content: Tensor | None = None
        if isinstance(tensor, nn.Parameter) and tensor.is_leaf:
            if tensor.device == self._device or not registered:
                self._copied.append(tensor)
        elif self._affords(tensor.nbytes, registered):
            content = tensor.detach().clone()
        self._note(_restore_tensor, tensor, tensor.data, content, tensor.is_leaf, tensor.requires_grad)
        for name in ("_backward_hooks", "_post_accumulate_grad_hooks"):
            hooks = getattr(tensor, name)
            if hooks is None:
                self._note(_remove_hooks, tensor, name)
            else:
                self._keep_container(hooks)
        if tensor.is_leaf:
            self._note(setattr, tensor, "grad", tensor.grad)
            tensor.grad = None

    def _stand_in(self, tensor: Tensor) -> None:
        replacement = tensor.detach().clone()
        if isinstance(tensor, nn.Parameter):
            replacement = nn.Parameter(replacement, tensor.requires_grad)
        replacement.__dict__.update(tensor.__dict__)
        self._plain[id(tensor)] = replacement

    def _without_inference(self, value: object) -> object:
        if type(value) is tuple:
            replaced = tuple(map(self._without_inference, value))
            return value if _same_objects(replaced, value) else replaced
        return self._plain.get(id(value), value)

    def _keep_array(self, array: np.ndarray[Any, Any]) -> None:
        if not array.dtype.hasobject and array.flags.writeable and self._affords(array.nbytes, False):
            self._note(_restore_array, array, array.copy())

    def _affords(self, size: int, registered: bool) -> bool:
        if not registered:
            self._content_bytes -= size
        return registered or self._content_bytes >= 0


_CONTAINERS = frozenset({dict, OrderedDict, list, set, deque})
_ATOMS = frozenset({bool, int, float, complex, str, bytes, type, type(None), torch.dtype, torch.device, torch.Size})


def _is_foreign(kind: type) -> bool:
    """Whether a class belongs to the standard library, NumPy or torch, so that its objects are not part of a model."""
    module = kind.__module__
    top = module.partition(".")[0]
    return top in sys.stdlib_module_names or top == "numpy" or (top == "torch" and not module.startswith("torch.nn."))


def _slots(kind: type) -> Iterator[str]:
    """Attribute names of the slots of a class."""
    slots = kind.__dict__.get("__slots__", ())
    for slot in (slots,) if isinstance(slots, str) else slots:
        if slot not in ("__dict__", "__weakref__"):
            mangled = slot.startswith("__") and not slot.endswith("__")
            yield f"_{kind.__name__.lstrip('_')}{slot}" if mangled else slot


def _is_plain(tensor: Tensor) -> bool:
    """Whether a tensor consists of its elements only: it is not sparse, nested, packed or a wrapper."""
    own = type(tensor).__torch_dispatch__ is not Tensor.__torch_dispatch__
    return not (own or tensor.is_meta or tensor.is_nested or tensor.is_quantized or tensor.layout != torch.strided)


def _copies(tensors: list[Tensor]) -> list[Tensor]:
    """Copies of tensors; the copies of tensors that share memory share memory too."""
    sizes: Counter[int] = Counter()
    for tensor in tensors:
        sizes[tensor.untyped_storage().data_ptr()] += tensor.nbytes
    memory: dict[int, torch.UntypedStorage] = {}
    copies = []
    for tensor in tensors:
        storage = tensor.untyped_storage()
        address = storage.data_ptr()
        if storage.nbytes() > _WASTE * sizes[address] or tensor.is_conj() or tensor.is_neg():
            copies.append(tensor.clone())
            continue
        if address not in memory:
            memory[address] = storage.clone()
        empty = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
        copies.append(empty.set_(memory[address], tensor.storage_offset(), tensor.shape, tensor.stride()))
    return copies


# Functions that restore: each compares first, so that unchanged objects are not written to.


def _restore_dict(container: dict[Any, Any], before: list[tuple[Any, Any]]) -> None:
    if not before and not container:
        return
    kind = OrderedDict if isinstance(container, OrderedDict) else dict
    now = list(kind.items(container))
    if len(now) != len(before) or any(a is not c or b is not d for (a, b), (c, d) in zip(now, before, strict=True)):
        kind.clear(container)
        kind.update(container, before)


def _restore_list(container: list[Any], before: list[Any]) -> None:
    if not _same_objects(list.__iter__(container), before):
        list.__setitem__(container, slice(None), before)


def _restore_set(container: set[Any], before: list[Any]) -> None:
    if not _same_objects(set.__iter__(container), before):
        set.clear(container)
        set.update(container, before)


def _restore_deque(container: deque[Any], before: list[Any]) -> None:
    if not _same_objects(deque.__iter__(container), before):
        deque.clear(container)
        deque.extend(container, before)


def _containers(container: object) -> tuple[Any, Callable[[Any, list[Any]], None]]:
    """The base class whose methods are used, because a subclass may override them, and the restoring function."""
    if isinstance(container, dict):
        return OrderedDict if isinstance(container, OrderedDict) else dict, _restore_dict
    if isinstance(container, list):
        return list, _restore_list
    return (set, _restore_set) if isinstance(container, set) else (deque, _restore_deque)


def _same_objects(now: Iterable[object], before: Iterable[object]) -> bool:
    """Whether two sequences hold the same objects."""
    missing = object()
    return all(a is b for a, b in zip_longest(now, before, fillvalue=missing))


def _restore_module(module: nn.Module, kind: type[nn.Module], training: bool) -> None:
    if type(module) is not kind:  # a parametrization creates a new class
        module.__class__ = kind
    if module.training != training:  # the mode of a scripted module is not an attribute
        module.training = training


def _restore_class(kind: type, before: dict[str, Any]) -> None:
    now = dict(vars(kind))
    for name in before.keys() | now.keys():
        if name.startswith("__"):
            continue
        if name not in before:
            delattr(kind, name)
        elif now.get(name, kind) is not before[name]:
            setattr(kind, name, before[name])


def _restore_slots(value: object, slots: list[str], before: dict[str, Any]) -> None:
    for slot in slots:
        if slot in before:
            if getattr(value, slot, None) is not before[slot]:
                object.__setattr__(value, slot, before[slot])
        elif hasattr(value, slot):
            object.__delattr__(value, slot)


def _restore_array(array: np.ndarray[Any, Any], before: np.ndarray[Any, Any]) -> None:
    if not np.array_equal(array, before):
        array[...] = before


def _restore_tensor(tensor: Tensor, data: Tensor, content: Tensor | None, leaf: bool, requires_grad: bool) -> None:
    with torch.no_grad():
        if leaf and not tensor.is_leaf:  # an in-place operation with a tensor that requires gradients
            tensor.detach_()
        if leaf and tensor.requires_grad != requires_grad:
            tensor.requires_grad_(requires_grad)
        if (tensor.data_ptr(), tensor.shape, tensor.stride()) != (data.data_ptr(), data.shape, data.stride()):
            tensor.data = data
        if content is not None and not same_values(tensor, content):
            tensor.copy_(content)


def same_values(first: Tensor, second: Tensor) -> bool:
    """Whether all elements of two tensors are equal, with NaN equal to NaN.

    Args:
        first: A tensor.
        second: A tensor of the same shape on the same device.

    Example:
        >>> same_values(torch.tensor([1.0, torch.nan]), torch.tensor([1.0, torch.nan]))
        True
    """
    return torch.equal(first, second) or bool(((first == second) | ((first != first) & (second != second))).all())


def _remove_hooks(tensor: Tensor, name: str) -> None:
    hooks = getattr(tensor, name)
    if hooks:
        hooks.clear()
