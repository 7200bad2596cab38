"""Execution of model measures."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from genmeasures.data import DataSource, mix
from genmeasures.engine.outcome import Outcome, by_variable, noted, outcome_of
from genmeasures.engine.prepare import PreparedData
from genmeasures.engine.seeds import generator_for
from genmeasures.errors import ComponentError, OptionError, Undefined, nearest
from genmeasures.failures import status_of
from genmeasures.interfaces import SPLITS, Layer, ModelData, ModelFacts, ModelMeasure, Split, Value, Variable
from genmeasures.tracing.guard import lent


class _Inputs:
    """The inputs that a model measure reads, and which splits it has read."""

    def __init__(self, measure: ModelMeasure, data: PreparedData, device: torch.device) -> None:
        self._measure = measure
        self._data = data
        self._device = device
        self.read: set[Split] = set()

    def batches(self, split: Split) -> Iterator[tuple[Tensor, Tensor | None]]:
        """See :attr:`~genmeasures.interfaces.ModelData.batches`."""
        self.read.add(split)
        for _, inputs, targets in self._source(split).checked():
            yield inputs.to(self._device), None if targets is None else targets.to(self._device)

    def order(self, split: Split) -> NDArray[np.int64]:
        """See :attr:`~genmeasures.interfaces.ModelData.order`."""
        keys = self._source(split).scan().keys
        salt = np.array([generator_for(self._data.seed, "inputs", split).initial_seed()], dtype=np.uint64)
        return np.argsort(mix(keys ^ mix(salt)))

    def sample(self, split: Split, count: int | None = None) -> tuple[Tensor, Tensor | None]:
        """See :attr:`~genmeasures.interfaces.ModelData.sample`."""
        self.read.add(split)
        ranks = {int(index): rank for rank, index in enumerate(self.order(split)[:count])}
        drawn: dict[int, tuple[Tensor, Tensor | None]] = {}
        for start, inputs, targets in self._source(split).checked():
            for row in range(len(inputs)):
                if start + row in ranks:
                    target = None if targets is None else targets[row].clone()
                    drawn[ranks[start + row]] = (inputs[row].clone(), target)
        ordered = [drawn[rank] for rank in range(len(drawn))]
        labels = [target for _, target in ordered if target is not None]
        stacked = torch.stack([inputs for inputs, _ in ordered]).to(self._device)
        return stacked, torch.stack(labels).to(self._device) if labels else None

    def _source(self, split: Split) -> DataSource:
        name = self._measure.name
        if split not in SPLITS:
            raise ComponentError(f"{name}: there is no split {split!r}{nearest(str(split), SPLITS)}")
        if split not in self._data.sources:
            raise Undefined(f"{name} needs {split} data, and none are given")
        return self._data.sources[split]


def model_measure_outcomes(
    measure: ModelMeasure,
    model: nn.Module,
    modules: Mapping[str, nn.Module],
    layers: Sequence[Layer],
    data: PreparedData,
    device: torch.device,
    own_changes: Collection[str],
    by_tiles: bool,
    facts: ModelFacts | None,
) -> Mapping[str, Sequence[Outcome]]:
    """Run a measure on the model, and restore the model afterwards.

    Args:
        measure: the measure.
        model: the model, on the device.
        modules: modules of the layers, by name.
        layers: the measured layers.
        data: data of the run.
        device: device of the run.
        own_changes: what the model changes by itself when it runs.
        by_tiles: whether inputs run in tiles, which rules out measures that run whole inputs.
        facts: what is known of the model; None for an empty name.

    Returns:
        Outcomes by the measure's own variable names, one per layer or a single one.

    Example:
        >>> import torch
        >>> from genmeasures.engine import prepare_data
        >>> from genmeasures.extractors import WholeTensor
        >>> from genmeasures.interfaces import Variable
        >>> class Parameters(ModelMeasure):
        ...     name = "parameters"
        ...     variables = (Variable("parameters", "number of parameters", dims=()),)
        ...
        ...     def measure(self, model, layers, data):
        ...         return {"parameters": sum(parameter.numel() for parameter in model.parameters())}
        >>> net, data = nn.Linear(2, 3), prepare_data({}, [], WholeTensor(), seed=0)
        >>> model_measure_outcomes(Parameters(), net, {}, [], data, torch.device("cpu"), (), False, None)
        {'parameters': [Outcome(value=9.0, status='ok')]}
    """
    try:
        with lent(model, device, own_changes) as changes:
            outcomes = _computed(measure, model, modules, layers, data, device, by_tiles, facts)
            changed = changes()
            return _distrusted(measure, changed, outcomes) if changed else outcomes
    except Exception as error:  # there may be no memory for another copy of the parameters
        return _failed(measure, status_of(error, str(measure)), len(layers))


def _computed(
    measure: ModelMeasure,
    model: nn.Module,
    modules: Mapping[str, nn.Module],
    layers: Sequence[Layer],
    data: PreparedData,
    device: torch.device,
    by_tiles: bool,
    facts: ModelFacts | None,
) -> Mapping[str, Sequence[Outcome]]:
    inputs = _Inputs(measure, data, device)
    generator = generator_for(data.seed, "measure", measure)
    read_facts = (facts or ModelFacts("")) if measure.reads_facts else None
    model_data = ModelData(inputs.batches, inputs.sample, inputs.order, device, generator, modules, read_facts)
    try:
        if by_tiles:
            raise OptionError(f"{measure.name} runs the model on whole inputs, which tile rules out")
        values = by_variable("measure", measure.measure(model, layers, model_data), measure.variables)
        outcomes: dict[str, Sequence[Outcome]] = {}
        for variable in measure.variables:
            note = data.target_note(inputs.read) if variable.name in measure.from_targets() else ""
            outcomes[variable.name] = [
                noted(outcome, note) for outcome in _outcomes(variable, values[variable.name], len(layers))
            ]
        return outcomes
    except Exception as error:  # the other measures continue
        return _failed(measure, status_of(error, str(measure)), len(layers))


def _outcomes(variable: Variable, value: Any, layers: int) -> list[Outcome]:
    """The outcomes of a variable as a measure returned it: one per layer, or a single one."""
    own = [name for name in variable.dims if name != "layer"]
    if "layer" not in variable.dims:
        return [outcome_of(value, own)]
    if isinstance(value, Undefined):
        return [outcome_of(value)] * layers
    if isinstance(value, str | Mapping | Value) or not hasattr(value, "__len__"):
        raise ComponentError(
            f"{variable.name} is of type {type(value).__name__}, expected a sequence of {layers} values, one per "
            "layer; for one value per model, declare dims=()"
        )
    outcomes = [outcome_of(item, own) for item in value]
    if len(outcomes) != layers:
        raise ComponentError(f"{variable.name} has {len(outcomes)} values, expected {layers}, one per layer")
    return outcomes


def _failed(measure: ModelMeasure, status: str, layers: int) -> dict[str, Sequence[Outcome]]:
    """Outcomes of all variables without a value, with one status."""
    failed = Outcome(float("nan"), status)
    return {variable.name: [failed] * (layers if "layer" in variable.dims else 1) for variable in measure.variables}


def _distrusted(
    measure: ModelMeasure, changed: Sequence[str], outcomes: Mapping[str, Sequence[Outcome]]
) -> dict[str, Sequence[Outcome]]:
    """The outcomes of a measure that left the model changed: its values cannot be trusted."""
    more = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
    error = ComponentError(
        f"{measure.name} did not leave the model as it was: {changed[0]}{more}; it must restore what it changes"
    )
    status = status_of(error, str(measure))
    return {
        # The error of a measure that failed is more informative: it is the reason why nothing was restored.
        name: of_variable
        if any(outcome.status.startswith("failed") for outcome in of_variable)
        else [Outcome(float("nan"), status)] * len(of_variable)
        for name, of_variable in outcomes.items()
    }
