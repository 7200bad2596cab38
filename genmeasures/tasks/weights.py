"""Loading of trained weights into a model, whatever entries and prefixes a training script or wrapper has added.

The entry and the prefix are found by trial: the first state dict that ``load_state_dict(strict=True)`` accepts is used.
"""

from __future__ import annotations

import logging
import re
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from genmeasures.errors import ModelError, nearest
from genmeasures.notes import remark
from genmeasures.tasks.weight_files import read_weight_file

log = logging.getLogger(__name__)

SUFFIXES = (
    *(".pt", ".pth", ".th", ".safetensors", ".ckpt", ".bin"),
    *(".pth.tar", ".pt.tar", ".tar", ".model", ".weights", ".pkl", ""),
)
"""Suffixes of the files that are searched for if no file is named, in this order."""

_ENTRIES = (
    "state_dict",  # Lightning, and most scripts
    "model_state_dict",
    "model",
    "network_weights",  # nnU-Net
    "network",
    "net",
    "weights",
    "params",
    "module",  # DeepSpeed
    # Averages come last: the trained weights are measured unless key selects others.
    "ema_state_dict",
    "state_dict_ema",  # timm
    "model_ema",
    "ema",
)
"""Usual entries of state dicts, in the order of preference."""
_WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""Parts of names that DataParallel, ``torch.compile``, FSDP and activation checkpointing add at any position."""
_PREFIXES = ("model", "net", "network", *_WRAPPERS, "ema")
"""Usual prefixes of all names, in the order of preference."""
_COUNTER = "num_batches_tracked"
"""Counters of batch normalization, which files of old PyTorch versions lack and evaluation does not use."""

_NO_WEIGHTS = re.compile(r"optim|sched", re.IGNORECASE)
_DEEPEST = 3
_MOST_TRIES = 8
_SHOWN = 8


class Misfit(ModelError):
    """The weights of a file do not fit the architecture."""


def load_weights(make: Callable[[], nn.Module], path: Path, key: str | None = None, strict: bool = True) -> nn.Module:
    """Load the weights of a file of ``torch.save`` or safetensors into a model.

    The state dict may be nested in dictionaries, and its names may have prefixes. The first state dict that loads
    strictly is used, in this order: the entries ``state_dict``, ``model_state_dict``, ``model``, ``network_weights``,
    ``network``, ``net``, ``weights``, ``params`` and ``module``; averages (``ema_state_dict``, ``state_dict_ema``,
    ``model_ema``, ``ema``); all other entries. If different weights in the file fit as well, a warning in the log
    names them; if none has a usual name, this is an error.

    A model with float64 or bfloat16 parameters keeps its dtype, all others are converted to float32.

    Args:
        make: returns the architecture. It is called again after each failed attempt, which may have changed the model.
        path: the file.
        key: entry of the file with the weights: names of entries and the prefix of the names in the state dict, joined
            by dots, such as "ema" or "state_dict.teacher". None to search for it.
        strict: whether all keys of the state dict must be used. If False, a state dict with additional keys is used
            if no other fits, with a remark (:mod:`genmeasures.notes`) that names them. Keys of the model must never be
            missing.

    Returns:
        The model.

    Raises:
        ModelError: the file cannot be read, or its weights do not fit (:class:`Misfit`). The message names the file
            and, for the best fit, the keys that are missing, unexpected or of another shape.

    Example:
        >>> import tempfile
        >>> net = nn.Linear(2, 1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save({"state_dict": net.state_dict(), "epoch": 3}, f"{folder}/net.pt")
        ...     loaded = load_weights(lambda: nn.Linear(2, 1), Path(folder) / "net.pt")
        >>> torch.equal(loaded.weight, net.weight)
        True
    """
    model = _floating(make())
    content = read_weight_file(path)
    if key is not None:
        content = _entry(content, key, path)
    expected = dict(model.state_dict())
    sources = sorted(_sources(content, key or ""), key=lambda source: not source.usual)
    if not sources:
        raise ModelError(_nothing_found(content, path, key))
    attempts = [attempt for source in sources for attempt in _attempts(source, expected)]
    attempts.sort(key=lambda attempt: not attempt.usual)
    tried: list[_Attempt] = []
    errors: list[Exception] = []
    trimmed = [] if strict else _trimmed(attempts, expected)
    for attempt in [*_worth_trying(attempts), *trimmed]:
        if tried:
            model = _floating(make())
        tried.append(attempt)
        try:
            _load(model, attempt)
        except Exception as error:  # hooks of the architecture run here
            errors.append(error)
            continue
        _report_others(attempt, trimmed if attempt.unused else attempts, path)
        if attempt.unused:
            names = _some(sorted(attempt.unused, key=len))
            remark(f"keys of {path.name} that are not used (strict: false): {len(attempt.unused)}, {names}")
        return model
    best = min(range(len(tried)), key=lambda number: tried[number].fit.faults)
    raise Misfit(_misfit_message(tried[best], tried, errors[best], path, type(model).__name__)) from errors[best]


def _floating(model: nn.Module) -> nn.Module:
    """The model in float32, unless all of its parameters are in float64 or bfloat16."""
    dtypes = {parameter.dtype for parameter in model.parameters() if parameter.dtype.is_floating_point}
    return model if dtypes in ({torch.float64}, {torch.bfloat16}) else model.float()


# State dicts in a file


@dataclass(frozen=True)
class _Source:
    """A dictionary in a file that can be a state dict."""

    location: str
    """Its ``key``."""
    usual: bool
    state: Mapping[str, Any]


def _sources(content: Any, location: str, usual: bool = True, depth: int = 0) -> Iterator[_Source]:
    if not isinstance(content, Mapping):
        return
    named = {name: value for name, value in content.items() if isinstance(name, str)}
    if len(named) == len(content) and any(isinstance(value, Tensor) for value in named.values()):
        yield _Source(location, usual, content)
    if depth < _DEEPEST:
        others = [name for name in named if name not in _ENTRIES and not _NO_WEIGHTS.search(name)]
        for name in (*(name for name in _ENTRIES if name in named), *others):
            inner = f"{location}.{name}" if location else name
            yield from _sources(named[name], inner, usual and name in _ENTRIES, depth + 1)


def _entry(content: Any, key: str, path: Path) -> Any:
    entries = content if isinstance(content, Mapping) else {}
    sources = _named(entries, key)
    if not sources:
        raise ModelError(f"{path} has no entry {key!r}{nearest(key, map(str, entries))}")
    if not isinstance(sources[0], Mapping):
        raise ModelError(f"{path}: the entry {key!r} is not a state dict but of type {_describe(sources[0])}")
    return sources[0]


def _named(entries: Mapping[Any, Any], key: str) -> list[Any]:
    """What a key selects: an entry, a nested entry, or all names with this prefix. Names can contain dots."""
    if key in entries:
        return [entries[key]]
    for name, value in entries.items():
        if isinstance(name, str) and key.startswith(f"{name}.") and isinstance(value, Mapping):
            sources = _named(value, key.removeprefix(f"{name}."))
            if sources:
                return sources
    start = f"{key}."
    under = {
        name.removeprefix(start): value
        for name, value in entries.items()
        if isinstance(name, str) and name.startswith(start)
    }
    return [under] if under else []


# Names and prefixes


@dataclass(frozen=True)
class _Fit:
    """Comparison of the names and shapes of a state dict with those of a model."""

    missing: Sequence[str]
    unexpected: Sequence[str]
    misshapen: Sequence[str]
    shared: int
    """Number of names that the file and the model share."""

    @property
    def faults(self) -> int:
        return len(self.missing) + len(self.unexpected) + len(self.misshapen)


@dataclass(frozen=True, eq=False)
class _Attempt:
    """A state dict to load."""

    location: str
    """The ``key`` that names it; empty for the file as it is."""
    usual: bool
    state: dict[str, Any]
    metadata: dict[str, Any]
    """Versions of modules, by which they read what older ones wrote."""
    left_out: int
    """Number of names of the same dictionary that are no part of it."""
    fit: _Fit
    unused: Sequence[str] = ()
    """Names of the same state dict that the model does not have."""

    def ordered(self) -> OrderedDict[str, Any]:
        """As ``load_state_dict`` takes it, for it alone."""
        state = OrderedDict(self.state)
        if self.metadata:
            state._metadata = dict(self.metadata)  # type: ignore[attr-defined]
        return state


def _attempts(source: _Source, expected: Mapping[str, Any]) -> Iterator[_Attempt]:
    """The state dict as it is, then without wrappers and prefixes."""
    metadata = getattr(source.state, "_metadata", None)
    metadata = dict(metadata) if isinstance(metadata, Mapping) else {}
    whole, fit = _completed(source.state, expected)
    yield _Attempt(source.location, source.usual, whole, metadata, 0, fit)
    if not fit.faults:
        return
    bare: Callable[[str], str] = _bare
    if len({bare(name) for name in expected}) < len(expected):
        bare = str  # such parts are all that tells some of the model's own names apart
    ours = {bare(name): name for name in expected}
    prefixes = _prefixes(list(source.state), bare, ours, expected)
    under: dict[str, list[str]] = {prefix: [] for prefix in prefixes}
    for name in source.state:
        for prefix in _beginnings(name):
            if prefix in under:
                under[prefix].append(name)
    seen = {_identity(source.state)}
    for prefix, inside in under.items():
        names = [bare(name.removeprefix(prefix)) for name in inside]
        renamed = {ours.get(name, name): source.state[whole] for name, whole in zip(names, inside, strict=True)}
        if len(renamed) < len(inside) or _identity(renamed) in seen:
            continue
        seen.add(_identity(renamed))
        state, fit = _completed(renamed, expected)
        versions = {
            bare(f"{name}.".removeprefix(prefix)).removesuffix("."): version
            for name, version in metadata.items()
            if isinstance(name, str) and f"{name}.".startswith(prefix)
        }
        start = prefix.removesuffix(".")
        yield _Attempt(
            location=f"{source.location}.{start}" if source.location and start else source.location or start,
            usual=source.usual and _is_usual(prefix),
            state=state,
            metadata=versions,
            left_out=len(source.state) - len(inside),
            fit=fit,
        )


def _prefixes(
    names: Sequence[str], bare: Callable[[str], str], ours: Mapping[str, str], expected: Mapping[str, Any]
) -> list[str]:
    """Candidate prefixes of the weights, "" or with a trailing dot, the usual ones first."""
    size: Counter[str] = Counter()
    hits: Counter[str] = Counter()
    for name in names:
        for prefix in _beginnings(name):
            size[prefix] += 1
            hits[prefix] += bare(name[len(prefix) :]) in ours
    needed = len(expected) - sum(name.endswith(_COUNTER) for name in expected) - len(_aliases(expected))
    usual = [prefix for prefix in size if _is_usual(prefix)]
    usual.sort(key=lambda prefix: [_PREFIXES.index(part) for part in prefix.split(".")[:-1]])
    full = [prefix for prefix in size if 0 < hits[prefix] == size[prefix] >= needed and prefix not in usual]
    # If names change on loading, the prefix with the most matches is the best guess.
    most = max(hits, key=lambda prefix: hits[prefix], default="")
    partly = [most] if hits[most] and most not in (*usual, *full) else []
    return [*usual, *full, *partly]


def _is_usual(prefix: str) -> bool:
    return all(part in _PREFIXES for part in prefix.split(".")[:-1])


def _beginnings(name: str) -> Iterator[str]:
    """All prefixes of a name: "", "a." and "a.b." of "a.b.c"."""
    end = 0
    while True:
        yield name[:end]
        end = name.find(".", end) + 1
        if end == 0:
            return


def _identity(state: Mapping[str, Any]) -> frozenset[tuple[str, int]]:
    return frozenset((name, id(value)) for name, value in state.items())


def _bare(name: str) -> str:
    """The name without the parts that wrappers add."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _completed(original: Mapping[str, Any], expected: Mapping[str, Any]) -> tuple[dict[str, Any], _Fit]:
    """The state dict with the keys that files may omit: counters of old versions, aliases of a tensor."""
    state = dict(original)
    for name, value in expected.items():
        if name not in state and name.endswith(_COUNTER) and isinstance(value, Tensor):
            state[name] = value
    for name, others in _aliases(expected).items():
        alias = next((original[other] for other in others if other in original), None)
        if name not in state and alias is not None:
            state[name] = alias
    fit = _Fit(
        missing=[name for name in expected if name not in state],
        unexpected=[name for name in state if name not in expected],
        misshapen=_misshapen(state, expected),
        shared=sum(name in expected for name in original),
    )
    return state, fit


def _aliases(expected: Mapping[str, Any]) -> dict[str, list[str]]:
    """Names of a model that share one tensor, each with its other names."""
    groups: dict[Any, list[str]] = {}
    for name, value in expected.items():
        if isinstance(value, Tensor) and not is_lazy(value) and value.layout == torch.strided and value.numel():
            memory = value.untyped_storage().data_ptr()
            if memory:
                groups.setdefault((memory, value.storage_offset(), value.shape, value.stride()), []).append(name)
    return {
        name: [other for other in names if other != name]
        for names in groups.values()
        if len(names) > 1
        for name in names
    }


def _misshapen(state: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    shapes = []
    for name, wanted in expected.items():
        if name in state and isinstance(wanted, Tensor) and not is_lazy(wanted):
            value = state[name]
            if not isinstance(value, Tensor):
                shapes.append(f"{name} of type {type(value).__name__}")
            # Scalars were vectors of one element before PyTorch 0.4, and load_state_dict accepts them.
            elif value.shape != wanted.shape and not (wanted.dim() == 0 and value.shape == (1,)):
                shapes.append(f"{name} {_shape(value)} instead of {_shape(wanted)}")
    return shapes


# Choice of the attempt


def _worth_trying(attempts: Sequence[_Attempt]) -> list[_Attempt]:
    """Attempts that fit, then those that may fit after the hooks of the model."""
    exact = [attempt for attempt in attempts if not attempt.fit.faults]
    others = [attempt for attempt in attempts if attempt.fit.faults]
    alike = [attempt for attempt in others if attempt.fit.shared]
    return [*exact, *(alike or others)][:_MOST_TRIES]


def _trimmed(attempts: Sequence[_Attempt], expected: Mapping[str, Any]) -> list[_Attempt]:
    """State dicts with additional keys, without these."""
    trimmed = []
    for attempt in attempts:
        fit = attempt.fit
        if fit.unexpected and not fit.missing and not fit.misshapen:
            state = {name: value for name, value in attempt.state.items() if name in expected}
            trimmed.append(replace(attempt, state=state, fit=replace(fit, unexpected=()), unused=fit.unexpected))
    # A longer prefix leaves fewer keys unused.
    return sorted(trimmed, key=lambda attempt: (not attempt.usual, len(attempt.unused)))[:_MOST_TRIES]


def _report_others(taken: _Attempt, attempts: Sequence[_Attempt], path: Path) -> None:
    """Report other weights that fit. Raises ModelError if none is preferable."""
    others = [other.location for other in attempts if other is not taken and _is_rival(other, taken)]
    if others and not taken.usual:
        locations = _some([repr(location) for location in (taken.location, *others)])
        raise ModelError(f"{path} has different weights that fit under {locations}: choose with key")
    if others:
        log.warning(
            "%s has different weights that fit: %s is used; set key to use others: %s",
            path,
            repr(taken.location) if taken.location else "the state dict without an entry",
            " or ".join(others[:_SHOWN]),
        )
    if taken.left_out:
        level = logging.INFO if taken.usual else logging.WARNING
        log.log(level, "%s: the weights under %r fit; %d other keys are ignored", path, taken.location, taken.left_out)


def _load(model: nn.Module, attempt: _Attempt) -> None:
    before = {} if attempt.fit.shared else {name: value.clone() for name, value in _tensors(model).items()}
    model.load_state_dict(attempt.ordered(), strict=True)
    # Some networks override strict. If they have no name of the file, their weights are still random.
    after = _tensors(model)
    if before and all(name in after and torch.equal(after[name], value) for name, value in before.items()):
        raise ModelError("it ignores all keys of the file")


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {
        name: value for name, value in model.state_dict().items() if isinstance(value, Tensor) and not is_lazy(value)
    }


def _is_rival(other: _Attempt, taken: _Attempt) -> bool:
    """Whether other weights have the same names and shapes as those used, but different values."""
    if not other.location or other.state.keys() != taken.state.keys():
        return False
    pairs = [
        (value, other.state[name])
        for name, value in taken.state.items()
        if isinstance(value, Tensor) and isinstance(other.state[name], Tensor)
    ]
    if any(a.shape != b.shape for a, b in pairs):
        return False
    return any(a is not b and not torch.equal(a, b.to(a.dtype)) for a, b in pairs)


# Errors


def _nothing_found(content: Any, path: Path, key: str | None) -> str:
    if not isinstance(content, Mapping):
        return f"{path} has no state dict: its content is of type {_describe(content)}"
    entries = [f"{name} ({_describe(value)})" for name, value in content.items()]
    where = "" if key is None else f" in its entry {key!r}"
    return f"{path} has no state dict{where}; expected names with tensors, got: {_some(entries) or 'nothing'}"


def _misfit_message(best: _Attempt, tried: Sequence[_Attempt], error: Exception, path: Path, architecture: str) -> str:
    location = f" ({best.location})" if best.location else ""
    if not best.fit.faults:
        lines = str(error).strip().splitlines()
        return f"{path}{location} cannot be loaded into {architecture}: {type(error).__name__}: {' '.join(lines[:3])}"
    fit = best.fit
    faults = (("missing", fit.missing), ("unexpected", fit.unexpected), ("of another shape", fit.misshapen))
    details = "; ".join(f"{len(keys)} {what}: {_some(sorted(keys, key=len))}" for what, keys in faults if keys)
    if any(
        name.endswith("_packed_params") or getattr(value, "is_quantized", False) for name, value in best.state.items()
    ):
        details += "; the file has quantized weights, so the factory must return the quantized network"
    if fit.unexpected and not fit.missing and not fit.misshapen:
        details += "; strict: false in the manifest permits keys that the model does not have"
    if len(tried) > 1:
        locations = dict.fromkeys(repr(attempt.location) if attempt.location else "the whole file" for attempt in tried)
        details += f"; the best fit of the attempts: {_some(list(locations))}"
    return f"{path}{location} does not fit the architecture ({architecture}): keys {details}"


def _describe(value: object) -> str:
    return "state dict" if [*_sources(value, "", depth=_DEEPEST)] else type(value).__name__


def _shape(tensor: Tensor) -> str:
    return f"({', '.join(map(str, tensor.shape))})"


def _some(items: Sequence[str]) -> str:
    return ", ".join(items[:_SHOWN]) + (f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else "")


__all__ = ["SUFFIXES", "Misfit", "load_weights"]
