"""The outputs of a model, handed to the measures of outputs in the passes that are made anyway."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from genmeasures.data.plain import plain
from genmeasures.engine.accuracy import tensor_of
from genmeasures.engine.guarded import Guarded
from genmeasures.engine.outcome import Outcome, by_variable, outcome_of
from genmeasures.engine.seeds import generator_for
from genmeasures.errors import DataError, Undefined, nearest
from genmeasures.failures import status_of
from genmeasures.interfaces import SPLITS, OutputBatch, OutputMeasure, Split, TaskKind

_ROWS = 1024
"""Stored outputs that are evaluated at a time."""
_SOFTMAX = 1e-3
"""Tolerance of the sum of probabilities, which is 1: that of a softmax in float16."""


class OutputConsumer(Guarded):
    """A measure of outputs on a model: fed batch by batch, split by split.

    Args:
        measure: a copy for this model only.
        seed: seed of the run.
    """

    def __init__(self, measure: OutputMeasure, seed: int) -> None:
        super().__init__(str(measure))
        self.measure = measure
        self.labeled: set[Split] = set()
        """The splits whose targets it has read."""
        self._logits: set[Split] = set()
        self._waiting = set(measure.splits)
        with self.guard:
            measure.start(generator_for(seed, "measure", measure))

    def waits_for(self, split: Split) -> bool:
        """Whether the measure has not failed, and has not seen this split."""
        return self.failure is None and split in self._waiting

    def reads_logits(self, split: Split) -> bool:
        """Whether it has read the outputs of a split as logits."""
        return split in self._logits

    def update(self, batch: OutputBatch) -> None:
        """Feed a batch."""
        if self.failure is not None:
            return
        batch.reads.clear()
        with self.guard:
            self.measure.update(batch)
        for what, splits in (("targets", self.labeled), ("logits", self._logits)):
            if what in batch.reads:
                splits.add(batch.split)

    def end_pass(self, split: Split) -> None:
        """End the pass over a split."""
        self._waiting.discard(split)

    def outcomes(self) -> dict[str, Outcome]:
        """The outcome of each variable of the measure, by name."""
        variables = self.measure.variables
        outcomes: dict[str, Outcome] = {}
        if self.failure is None:
            with self.guard:
                values = by_variable("compute", self.measure.compute(), variables)
                outcomes = {variable.name: outcome_of(values[variable.name], variable.dims) for variable in variables}
        if self.failure is None:
            return outcomes
        return {variable.name: Outcome(float("nan"), self.failure) for variable in variables}


class OutputPass:
    """The outputs of a model in one pass over a split.

    Args:
        split: the split.
        consumers: the measures that are fed.
        kind: kind of the task.
        classes: number of classes by the largest label, 0 if no targets are class numbers.

    Example:
        >>> from genmeasures.interfaces import Variable
        >>> class Mean(OutputMeasure):
        ...     name, splits = "mean", ("test",)
        ...     variables = (Variable("mean", "mean output", dims=()),)
        ...
        ...     def start(self, generator):
        ...         self._sum = self._count = 0
        ...
        ...     def update(self, batch):
        ...         self._sum += float(batch.outputs.double().sum())
        ...         self._count += batch.outputs.numel()
        ...
        ...     def compute(self):
        ...         return self._sum / self._count
        >>> consumer = OutputConsumer(Mean(), seed=0)
        >>> outputs = OutputPass("test", [consumer], "unknown", 0)
        >>> outputs.add(torch.tensor([[1.0], [2.0]]), None, torch.tensor([0, 2]))
        >>> outputs.add(torch.tensor([[6.0]]), None, torch.tensor([1]))
        >>> outputs.end()
        >>> consumer.outcomes()
        {'mean': Outcome(value=3.0, status='ok')}
    """

    def __init__(self, split: Split, consumers: Sequence[OutputConsumer], kind: TaskKind, classes: int) -> None:
        self._split: Split = split
        self._consumers = consumers
        self._kind: TaskKind = kind
        self._classes = classes
        self._probabilities = True
        """Whether the outputs so far can be probabilities."""

    def add(self, output: Any, targets: Tensor | None, inputs: Tensor) -> None:
        """Feed a batch.

        Args:
            output: what the model returns for some inputs.
            targets: (B, C, *S), None if the data have none.
            inputs: int64 (B,), the rank of each input by its contents.
        """
        try:
            batch = self._batch(output, targets, inputs)
        except Exception as error:  # whatever the output of a user's model is, the other measures continue
            status = status_of(error, f"reading the outputs on the {self._split} data")
            for consumer in self._consumers:
                consumer.fail(status)
            return
        for consumer in self._consumers:
            consumer.update(batch)

    def _batch(self, output: Any, targets: Tensor | None, inputs: Tensor) -> OutputBatch:
        outputs = tensor_of(output).float()
        if not outputs.dim() or len(outputs) != len(inputs):
            raise Undefined("the model does not return one output per input")
        # The sum shows any NaN or infinity; only then is it worth checking whether finite numbers overflowed it.
        if not bool(torch.isfinite(outputs.sum())) and not bool(torch.isfinite(outputs).all()):
            raise Undefined("NaN or infinite outputs")
        self._probabilities = self._probabilities and _are_probabilities(outputs)
        ranks = inputs.to(outputs.device)
        moved = None if targets is None else targets.to(outputs.device)
        return OutputBatch(self._split, ranks, outputs, moved, self._kind, self._classes)

    def end(self) -> None:
        """End the pass. Probabilities are no logits: their softmax would be a plausible number, and a wrong one."""
        for consumer in self._consumers:
            consumer.end_pass(self._split)
            if self._probabilities and consumer.reads_logits(self._split):
                consumer.fail(
                    "undefined: the outputs are probabilities (≥ 0 with sum 1), and the measure reads logits: measure "
                    "the model without its softmax"
                )


def _are_probabilities(outputs: Tensor) -> bool:
    """Whether all outputs (B, K, *S) are ≥ 0 with sum 1."""
    if outputs.dim() < 2 or outputs.shape[1] < 2 or not bool((outputs >= 0).all()):
        return False
    return bool(((outputs.double().sum(1) - 1).abs() <= _SOFTMAX).all())


# Stored outputs -------------------------------------------------------------------------------------------------


def evaluate(measure: OutputMeasure, outputs: Mapping[Split, Any], seed: int = 0) -> dict[str, Outcome]:
    """A measure of outputs as a function of arrays, without models and inputs.

    Args:
        measure: the measure, which is left as it is.
        outputs: by split, outputs (N, …), which are read as float32, or a tuple (outputs, targets); arrays or tensors.
            Integer targets, (N,) or (N, *S) for outputs (N, K, *S), are class numbers, negative without a label;
            floating-point targets, (N,), (N, C) or (N, C, *S), are continuous, NaN without a label. Inputs are ranked
            by their places in the arrays.
        seed: of every random choice.

    Returns:
        By variable: the value with its status, as in the result of a run.

    Raises:
        DataError: there is no such split, or outputs and targets do not match.

    Example:
        >>> import numpy as np
        >>> from genmeasures.plugin import InputMean, Variable
        >>> class Error(OutputMeasure):
        ...     name, splits = "error", ("test",)
        ...     variables = Variable("error", "fraction of wrong predictions", bounds=(0, 1), dims=()).with_error()
        ...
        ...     def start(self, generator):
        ...         self._wrong = InputMean()
        ...
        ...     def update(self, batch):
        ...         rows = batch.labeled
        ...         self._wrong.add(rows.inputs, (rows.predictions != rows.labels).double())
        ...
        ...     def compute(self):
        ...         return self._wrong.values("error")
        >>> logits = np.array([[2.0, 1.0], [0.0, 3.0], [0.0, 1.0], [5.0, 0.0]])
        >>> evaluate(Error(), {"test": (logits, np.array([0, 1, 0, 0]))})["error"]
        Outcome(value=0.25, status='ok')
        >>> evaluate(Error(), {"test": logits})["error"].status
        'undefined: the test data have no targets'
    """
    stored = {split: _stored(split, value) for split, value in outputs.items()}
    classes = [
        int(targets.max()) + 1
        for _, targets in stored.values()
        if targets is not None and not targets.is_floating_point() and targets.shape[1] == 1 and len(targets)
    ]
    targeted = any(targets is not None for _, targets in stored.values())
    kind: TaskKind = "classification" if classes else "regression" if targeted else "unknown"
    copied = measure.clone()
    consumer = OutputConsumer(copied, seed)
    for split in copied.splits:
        if split not in stored:
            consumer.fail(f"undefined: {measure.name} needs outputs on {split} data, and none are given")
            continue
        values, targets = stored[split]
        one_pass = OutputPass(split, [consumer], kind, max(classes, default=0))
        ranks = torch.arange(len(values), device="cpu")
        for inputs in ranks.split(_ROWS):
            one_pass.add(values[inputs], None if targets is None else targets[inputs], inputs)
        one_pass.end()
    named = zip(copied.variables, copied.written(), strict=True)
    outcomes = consumer.outcomes()
    return {written.name: outcomes[variable.name] for variable, written in named}


def _stored(split: Split, value: Any) -> tuple[Tensor, Tensor | None]:
    """Outputs (N, …) and targets (N, C, *S) of a split."""
    if split not in SPLITS:
        raise DataError(f"there is no split {split!r}{nearest(str(split), SPLITS)}")
    given = value if isinstance(value, tuple) else (value, None)
    if len(given) != 2:
        raise DataError(f"{split} outputs: expected outputs or a tuple (outputs, targets), got {len(given)} parts")
    outputs = plain(given[0])
    if not outputs.dim() or not len(outputs):
        raise DataError(f"{split} outputs: expected an array of shape (N, …), got {tuple(outputs.shape)}")
    if given[1] is None:
        return outputs, None
    targets = plain(given[1])
    what = f"{split} outputs: targets of shape {tuple(targets.shape)} do not match outputs of {tuple(outputs.shape)}"
    if not targets.dim() or len(targets) != len(outputs):
        raise DataError(what)
    if targets.dim() == 1 or targets.dim() == outputs.dim() - 1:
        targets = targets[:, None]
    if targets.dim() not in (2, outputs.dim()):
        raise DataError(what)
    return outputs, targets.float() if targets.is_floating_point() else targets.long().clamp(min=-1)


__all__ = ["OutputConsumer", "OutputPass", "evaluate"]
