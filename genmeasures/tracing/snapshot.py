"""What a model keeps, in its modules and beside them: noted down, and put back."""

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
"""Containers of more elements are put back, and not looked into."""
_OBJECTS = 100_000
"""Objects looked at, those nearest to the modules first: some models hold on to their trainer and its data."""
_CONTENT_BYTES = 1 << 29
"""Contents kept of tensors and arrays that are neither parameters nor buffers, the nearest first."""
_WASTE = 2
"""Memory that parameters share is copied as one unless it is so many times as large as they are."""

_PLAIN_OBJECTS = (types.SimpleNamespace, argparse.Namespace)
"""Classes of the standard library whose objects are looked into: the others belong to the process, such as loggers."""


def keep(model: nn.Module, device: torch.device, undo: ExitStack) -> None:
    """Register with ``undo`` all that puts a model back as it is now; from now on it runs on copies of its parameters.

    Kept is what can be reached from the model's modules through attributes, ``dict``, ``list``,
    ``tuple``, ``set`` and ``deque``, and plain objects: registered parameters, buffers, modules and
    hooks, plain attributes of any kind, the attributes of the modules' own classes, the classes
    themselves, gradients, ``requires_grad``, and the states of random generators. Of containers, the
    elements are kept; of tensors and arrays, the contents.

    Parameters get other memory: the originals are not written to, neither through ``.data`` nor when
    an adapter is merged into a weight, and come back to the bit without having been compared. Those on
    another device are left: moving them gives them other memory too. Other tensors are copied, and what
    was written to them is written back. Plain copies stand in for tensors made in inference mode, which
    autograd would not take.

    Not seen: what is held by closures, by caches of functions, by objects of the standard library or of
    C++, and what lies beyond the limits at the head of this module.
    """
    keeper = _Keeper(model, device)
    undo.callback(keeper.restore)
    keeper.keep()


class _Keeper:
    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self._model = model
        self._notes: list[tuple[Callable[..., object], tuple[Any, ...]]] = []
        """What puts things back, with its arguments."""
        self._device = device
        self._registered = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
        self._seen: dict[int, object] = {}
        """By id, all that has been looked at: nothing else can take over an id while it is here."""
        self._waiting: deque[object] = deque()
        self._containers: list[Any] = []
        self._copied: list[Tensor] = []
        """Parameters that get other memory."""
        self._plain: dict[int, Tensor] = {}
        """By the id of a tensor made in inference mode, what stands in for it."""
        self._content_bytes = _CONTENT_BYTES

    def restore(self) -> None:
        """Put everything back, whatever fails or interrupts in between; the first error is raised in the end."""
        failure: BaseException | None = None
        for restore, arguments in reversed(self._notes):
            try:
                restore(*arguments)
            except BaseException as error:
                failure = failure or error
        if failure is not None:
            raise failure

    def keep(self) -> None:
        """Look at everything that can be reached, note how it is put back, and make the copies that are run on."""
        for module in self._model.modules():
            self._look(module)
        # A scripted module's are in C++, where its attributes do not lead.
        self._look_at((*self._model.parameters(), *self._model.buffers()))
        while self._waiting and len(self._seen) < _OBJECTS:
            self._keep(self._waiting.popleft())
        for tensor, copy in zip(self._copied, _copies([tensor.data for tensor in self._copied]), strict=True):
            tensor.data = copy
        for container in self._containers if self._plain else ():
            kind, _ = _containers(container)
            for place, value in list(kind.items(container) if issubclass(kind, dict) else enumerate(container)):
                kind.__setitem__(container, place, self._without_inference(value))

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
        if type(value) in _CONTAINERS:  # by far the most, and quickly told
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
        for own in type(module).__mro__:
            if own is nn.Module:
                break
            if not _is_foreign(own) and id(own) not in self._seen:
                self._seen[id(own)] = own
                self._note(_restore_class, own, dict(vars(own)))
                held = (value for name, value in vars(own).items() if not name.startswith("__"))
                self._look_at(value for value in held if isinstance(value, dict | list | set | deque | Tensor))

    def _keep_attributes(self, value: object) -> None:
        attributes = getattr(value, "__dict__", None)
        if isinstance(attributes, dict):
            self._keep_container(attributes)
        slots = [slot for one in type(value).__mro__ for slot in _slots(one)]
        if slots:
            before = {slot: getattr(value, slot) for slot in slots if hasattr(value, slot)}
            self._note(_restore_slots, value, slots, before)
            self._look_at(before.values())

    def _keep_container(self, container: Any) -> None:
        kind, restore = _containers(container)
        elements = list(kind.items(container) if issubclass(kind, dict) else kind.__iter__(container))
        self._notes.append((restore, (container, elements)))
        if not elements:  # most are: modules have a dozen empty containers of hooks
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
        made = tensor.detach().clone()
        if isinstance(tensor, nn.Parameter):
            made = nn.Parameter(made, tensor.requires_grad)
        made.__dict__.update(tensor.__dict__)
        self._plain[id(tensor)] = made

    def _without_inference(self, value: object) -> object:
        if type(value) is tuple:
            made = tuple(map(self._without_inference, value))
            return value if _same_objects(made, value) else made
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
    """Whether a class belongs to the standard library, NumPy or torch itself: its objects are not the model's."""
    module = kind.__module__
    top = module.partition(".")[0]
    return top in sys.stdlib_module_names or top == "numpy" or (top == "torch" and not module.startswith("torch.nn."))


def _slots(kind: type) -> Iterator[str]:
    slots = kind.__dict__.get("__slots__", ())
    for slot in (slots,) if isinstance(slots, str) else slots:
        if slot not in ("__dict__", "__weakref__"):
            mangled = slot.startswith("__") and not slot.endswith("__")
            yield f"_{kind.__name__.lstrip('_')}{slot}" if mangled else slot


def _is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is nothing but its elements: no sparse, nested, packed or wrapped one."""
    own = type(tensor).__torch_dispatch__ is not Tensor.__torch_dispatch__
    return not (own or tensor.is_meta or tensor.is_nested or tensor.is_quantized or tensor.layout != torch.strided)


def _copies(tensors: list[Tensor]) -> list[Tensor]:
    """Copies of tensors; those that share memory share that of their copies."""
    sizes: Counter[int] = Counter()
    for tensor in tensors:
        sizes[tensor.untyped_storage().data_ptr()] += tensor.nbytes
    memory: dict[int, torch.UntypedStorage] = {}
    made = []
    for tensor in tensors:
        storage = tensor.untyped_storage()
        place = storage.data_ptr()
        if storage.nbytes() > _WASTE * sizes[place] or tensor.is_conj() or tensor.is_neg():
            made.append(tensor.clone())
            continue
        if place not in memory:
            memory[place] = storage.clone()
        empty = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
        made.append(empty.set_(memory[place], tensor.storage_offset(), tensor.shape, tensor.stride()))
    return made


# Putting back: each looks first, so that what is as it was is not written to.


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
    """The base class whose methods are used, for a class of the user's may change them, and what puts elements back."""
    if isinstance(container, dict):
        return OrderedDict if isinstance(container, OrderedDict) else dict, _restore_dict
    if isinstance(container, list):
        return list, _restore_list
    return (set, _restore_set) if isinstance(container, set) else (deque, _restore_deque)


def _same_objects(now: Iterable[object], before: Iterable[object]) -> bool:
    missing = object()
    return all(a is b for a, b in zip_longest(now, before, fillvalue=missing))


def _restore_module(module: nn.Module, kind: type[nn.Module], training: bool) -> None:
    if type(module) is not kind:  # a parametrization makes a class of its own
        module.__class__ = kind
    if module.training != training:  # a scripted module's mode is no attribute
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
        if leaf and not tensor.is_leaf:  # written to in place by what has a gradient
            tensor.detach_()
        if leaf and tensor.requires_grad != requires_grad:
            tensor.requires_grad_(requires_grad)
        if (tensor.data_ptr(), tensor.shape, tensor.stride()) != (data.data_ptr(), data.shape, data.stride()):
            tensor.data = data
        if content is not None and not same_values(tensor, content):
            tensor.copy_(content)


def same_values(one: Tensor, other: Tensor) -> bool:
    """Whether all elements are the same, NaN being the same as NaN."""
    return torch.equal(one, other) or bool(((one == other) | ((one != one) & (other != other))).all())


def _remove_hooks(tensor: Tensor, name: str) -> None:
    hooks = getattr(tensor, name)
    if hooks:
        hooks.clear()
