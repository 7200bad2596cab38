"""Accuracy with one layer at a time set back to its initial weights (Zhang, Bengio and Singer 2019)."""

from __future__ import annotations

import copy
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from genmeasures.plugin import (
    SPLITS,
    Layer,
    ModelData,
    ModelMeasure,
    OptionError,
    Split,
    Undefined,
    Value,
    Variable,
    global_generators,
    load_weights,
    one_of,
    require,
)

_REFERENCES = "Zhang, Bengio and Singer 2019, Are All Layers Created Equal?"
_PLACE = "{model}"

State: TypeAlias = Mapping[str, Tensor]
"""State dict of a module."""


def fresh_state(module: nn.Module, seed: int) -> State:
    """Return weights that ``reset_parameters`` of a module draws, without changing the module or global generators.

    Args:
        module: A layer with a method ``reset_parameters``.
        seed: Seed of the weights, the same on every device.

    Returns:
        State dict on the CPU.

    Raises:
        Undefined: If the module has no such method, or its weight is computed from other parameters.

    Example:
        >>> layer = nn.Linear(2, 3)
        >>> torch.equal(fresh_state(layer, 0)["weight"], fresh_state(layer, 0)["weight"])
        True
    """
    reset = getattr(type(module), "reset_parameters", None)
    if reset is None:
        raise Undefined(f"{type(module).__name__} has no method reset_parameters: give a file of initial weights")
    if not isinstance(module._parameters.get("weight"), nn.Parameter):
        raise Undefined("the weight is computed from other parameters: give a file of initial weights")
    fresh = copy.deepcopy(module).cpu()
    generators = global_generators()
    states = [generator.get() for generator in generators]
    try:
        for generator in generators:
            generator.seed(seed)
        with torch.inference_mode(False), torch.no_grad():
            fresh.reset_parameters()  # type: ignore[operator]
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set(state)
    return fresh.state_dict()


def layer_seed(seed: int, name: str) -> int:
    """Return the seed of the weights of a layer, which depends on no other layer.

    Args:
        seed: Seed of all layers.
        name: Name of the layer.

    Example:
        >>> layer_seed(3, "conv1") == layer_seed(3, "conv1") != layer_seed(3, "conv2")
        True
    """
    return (seed + zlib.crc32(name.encode())) % 2**62


@contextmanager
def set_back(model: nn.Module, name: str, state: State) -> Iterator[None]:
    """Context in which a module of a model has other weights; restored at the end.

    Args:
        model: The model.
        name: Name of the module.
        state: Its state dict.

    Example:
        >>> net = nn.Sequential(nn.Linear(1, 1, bias=False))
        >>> before = net[0].weight.item()
        >>> with set_back(net, "0", {"weight": torch.tensor([[7.0]])}):
        ...     net[0].weight.item()
        7.0
        >>> net[0].weight.item() == before
        True
    """
    module = model.get_submodule(name)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    try:
        module.load_state_dict(dict(state))
        yield
    finally:
        module.load_state_dict(before)


def reinitialized(
    model: nn.Module, names: Sequence[str], initial: nn.Module | None = None, seed: int = 0
) -> dict[str, Callable[[], nn.Module]]:
    """Return the models in which one layer has its initial weights, for any measure of them.

    Args:
        model: The trained model.
        names: Names of modules of the model.
        initial: The model with its initial weights, or with those of another checkpoint. None draws the weights of each
            layer with its method ``reset_parameters``.
        seed: Seed of the weights that are drawn.

    Returns:
        By name of the module, a function that builds the changed model, which ``genmeasures.measure`` takes.

    Raises:
        Undefined: If a module has no method ``reset_parameters``, when its model is built.

    Example:
        >>> import genmeasures
        >>> net, x = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 2)), torch.rand(12, 2)
        >>> ds = genmeasures.measure(reinitialized(net, ["0", "2"]), test=x, measures=["jacobian_norm"])
        >>> ds.model.values.tolist()
        ['0', '2']
    """

    def build(name: str) -> nn.Module:
        changed = copy.deepcopy(model)
        module = changed.get_submodule(name)
        state = (
            fresh_state(module, layer_seed(seed, name)) if initial is None else initial.get_submodule(name).state_dict()
        )
        module.load_state_dict(dict(state))
        return changed

    return {name: partial(build, name) for name in names}


class Reinitialization(ModelMeasure):
    """Accuracy of the model with one layer at a time set back to its initial weights.

    All other layers, and normalizations behind the layer, keep their trained weights. Layers whose accuracy stays high
    are "ambient", the others "critical". Without a file of initial weights, those of a layer are drawn with its method
    ``reset_parameters``: they are the default of PyTorch, and not those that the training began with, which the status
    says. A layer without such a method, or with a weight that is computed from other parameters, has no value then.
    Layers that are calls of one module change together. The model needs one output per class, of at least two: a single
    logit of a binary classifier has no value. Stored results are reused for the same path: give another file
    another name.

    Source: Zhang, Bengio and Singer 2019, "Are All Layers Created Equal?".

    Args:
        initial: Path of a file with the initial weights of the model, or with those of another checkpoint;
            ``{model}`` in it stands for the name of the model. Only weights are read, and no code in the file is
            executed. None draws weights.
        split: Split of the accuracy, ``"train"``, ``"test"`` or ``"validation"``.

    Raises:
        OptionError: If an option is not valid.

    Example:
        >>> import genmeasures
        >>> net = nn.Sequential(nn.Linear(2, 2, bias=False))
        >>> net.load_state_dict({"0.weight": 9 * torch.eye(2)})
        <All keys matched successfully>
        >>> x, y = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1])
        >>> ds = genmeasures.measure([net], test=(x, y), measures=[Reinitialization()])
        >>> ds.reinitialization.dims, ds.reinitialization_none.item()
        (('model', 'layer'), 1.0)
    """

    name = "reinitialization"
    reads_facts = True
    variables = (
        Variable(
            "reinitialization",
            "accuracy with one layer set back to its initial weights",
            references=_REFERENCES,
            bounds=(0, 1),
        ),
        Variable(
            "reinitialization_none",
            "accuracy of the whole trained model",
            references=_REFERENCES,
            bounds=(0, 1),
            dims=(),
            auxiliary=True,
        ),
    )

    def __init__(self, initial: str | None = None, split: Split = "test") -> None:
        message = f"initial must be the path of a file, or None, got {initial!r}"
        require(initial is None or (isinstance(initial, str) and bool(initial)), self, message)
        one_of(self, "split", split, SPLITS)
        self.initial = initial
        self.split = split

    def from_targets(self) -> Collection[str]:
        """All variables: they are accuracies."""
        return [variable.name for variable in self.variables]

    def measure(self, model: nn.Module, layers: Sequence[Layer], data: ModelData) -> Mapping[str, Any]:
        """See :meth:`ModelMeasure.measure`. A copy of the model is changed, and not the model.

        Raises:
            Undefined: If the targets are not classes, or the outputs not one number for each of them.
            ModelError: If the file cannot be read, or does not fit the model.
        """
        seed = int(torch.randint(2**62, (1,), generator=data.generator, device=data.generator.device))
        initial = None if self.initial is None else self._initial(self.initial, model, data)
        names = {id(module): name for name, module in model.named_modules()}
        changed = copy.deepcopy(model)
        whole = _accuracy(changed, data, self.split)
        values: dict[str, float | Value | Undefined] = {}
        found: list[float | Value | Undefined] = []
        for layer in layers:
            name = names[id(data.module(layer))]
            if name not in values:
                values[name] = self._of_layer(changed, name, initial, seed, data)
            found.append(values[name])
        return {"reinitialization": found, "reinitialization_none": whole}

    def _of_layer(
        self, model: nn.Module, name: str, initial: nn.Module | None, seed: int, data: ModelData
    ) -> float | Value | Undefined:
        try:
            if initial is not None:
                state: State = initial.get_submodule(name).state_dict()
            else:
                state = fresh_state(model.get_submodule(name), layer_seed(seed, name))
            with set_back(model, name, state):
                accuracy = _accuracy(model, data, self.split)
        except Undefined as reason:  # the other layers have values
            return reason
        note = "weights drawn by reset_parameters, and not those that the training began with"
        return accuracy if initial is not None else Value(accuracy, note)

    def _initial(self, path: str, model: nn.Module, data: ModelData) -> nn.Module:
        if _PLACE in path and not data.facts.name:
            raise OptionError(f"Reinitialization: the model has no name for {_PLACE} in initial={path!r}")
        return load_weights(partial(copy.deepcopy, model), Path(path.replace(_PLACE, data.facts.name)))


def _accuracy(model: nn.Module, data: ModelData, split: Split) -> float:
    """Fraction of labels, one per input or per pixel, that the largest output predicts."""
    correct = total = 0
    for inputs, targets in data.batches(split):
        if targets is None:
            raise Undefined("the accuracy needs targets, and the data have none")
        if targets.is_floating_point() or targets.shape[1] != 1:
            raise Undefined("the accuracy needs targets that are class numbers")
        with torch.no_grad():
            output = model(inputs)
        outputs = output.shape[1] if isinstance(output, Tensor) and output.dim() > 1 else 0
        if outputs < 2 or output.shape != (len(inputs), outputs, *targets.shape[2:]):
            got = f"outputs of shape {tuple(output.shape[1:])}" if isinstance(output, Tensor) else type(output).__name__
            raise Undefined(
                "the accuracy needs one output per class, of at least two, and as many positions as the targets have, "
                f"got {got}"
            )
        if not bool(torch.isfinite(output).all()):
            raise Undefined("NaN or infinite outputs")
        labels = targets[:, 0]
        if bool((labels >= outputs).any()):  # the text depends on no batch
            raise Undefined(
                f"the accuracy needs one output per class, got {outputs} outputs and labels above {outputs - 1}"
            )
        correct += int(((output.argmax(1) == labels) & (labels >= 0)).sum())
        total += int((labels >= 0).sum())
    if not total:
        raise Undefined("the accuracy needs labels, and no input has one")
    return correct / total
