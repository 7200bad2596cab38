"""Correct predictions, counted during the passes of the measures."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from genmeasures.data import DataSource
from genmeasures.errors import Undefined
from genmeasures.interfaces import Split, TaskKind
from genmeasures.tracing.dtypes import is_readable, plain

log = logging.getLogger(__name__)

_SURE = 3
"""Standard errors by which a model with more outputs than classes must beat the best constant guess."""


@dataclass(frozen=True)
class Correct:
    """Correct predictions of a model on a split."""

    correct: int
    labels: int
    """Number of labels."""


def classes_of(sources: Mapping[Split, DataSource]) -> int:
    """The number of classes by the largest label of all splits; 0 if no targets are class numbers.

    Args:
        sources: scanned data by split.

    Example:
        >>> classes_of({"train": DataSource((torch.zeros(3, 2), torch.tensor([0, 2, 1])), "train", 3)})
        3
    """
    largest = 0
    for source in sources.values():
        scan = source.scan()
        targets, summary = scan.targets, scan.summary
        if targets is None or summary is None or targets.kind != "integer" or targets.channels != 1:
            continue
        classes = (
            summary.info.channels if summary.info.channels > 1 else int(summary.largest) + 1 if summary.places else 0
        )
        largest = max(largest, classes)
    return largest


def kind_of(sources: Mapping[Split, DataSource]) -> TaskKind:
    """What the targets of all splits say of the outputs.

    Args:
        sources: scanned data by split.

    Example:
        >>> kind_of({"train": DataSource((torch.zeros(3, 2), torch.tensor([0, 2, 1])), "train", 3)})
        'classification'
    """
    targets = [info for source in sources.values() if (info := source.scan().targets) is not None]
    if any(info.kind == "integer" and info.channels == 1 for info in targets):
        return "classification"
    return "regression" if targets else "unknown"


def tensor_of(output: Any) -> Tensor:
    """The tensor (B, …) that a model returns: the output itself, or its ``logits``.

    Args:
        output: what the model returns.

    Raises:
        Undefined: there is none, or it is not one of floating-point numbers.

    Example:
        >>> tensor_of({"logits": torch.zeros(2, 3)}).shape
        torch.Size([2, 3])
    """
    if not isinstance(output, Tensor):
        output = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if not isinstance(output, Tensor):
        raise Undefined("the model does not return a tensor")
    if not is_readable(output) or not output.is_floating_point():
        raise Undefined("the outputs are not floating-point numbers")
    return plain(output.detach())


class Accuracy:
    """The predictions of one model on one split, in one pass.

    A prediction is the index of the largest output, per input or per pixel. Predictions are counted if targets are
    class numbers, one per input or per pixel, and the output is a tensor (B, classes) or (B, classes, *spatial), or has
    one as ``logits``. More outputs than classes may be something else, such as an embedding: they are counted if they
    beat the best constant guess by more than chance.

    Args:
        source: the split.
        classes: number of classes, 0 if targets are not class numbers.

    Example:
        >>> source = DataSource((torch.zeros(3, 2), torch.tensor([0, 1, 1])), "test", 3)
        >>> accuracy = Accuracy(source, 2)
        >>> accuracy.add(torch.tensor([[2.0, 1.0], [2.0, 1.0], [0.0, 1.0]]), torch.tensor([[0], [1], [1]]))
        >>> accuracy.result()
        Correct(correct=2, labels=3)
    """

    def __init__(self, source: DataSource, classes: int) -> None:
        targets = source.scan().targets
        self._classes = classes
        fits = targets is not None and targets.kind == "integer" and targets.channels == 1 and classes > 1
        self._space = () if targets is None else targets.spatial
        self._correct: Tensor | None = None
        self._labels = 0
        self._counts: Tensor | None = None
        """Count of each label, if there are more outputs than classes."""
        self._outputs = 0
        self._fault = "" if fits else "the targets are not one class number each"

    def add(self, output: Any, targets: Tensor | None) -> None:
        """Count a batch: the output of the model, and targets (B, 1, *S), −1 without a label."""
        if self._fault:
            return
        try:
            self._fault = self._add(tensor_of(output), targets)
        except Undefined as reason:
            self._fault = str(reason)
        except Exception as error:  # whatever the output of a user's model does, no measure fails for it
            self._fault = f"{type(error).__name__}: {error}"

    def _add(self, output: Tensor, targets: Tensor | None) -> str:
        if targets is None:
            return "there are no targets"
        outputs = output.shape[1] if output.dim() > 1 else 0
        if output.shape == (len(targets), self._classes - 1, *self._space) and outputs > 1:
            log.warning(
                "no accuracy is counted: labels go up to %d, and the model has %d outputs: are the classes numbered "
                "from 0?",
                self._classes - 1,
                outputs,
            )
        if output.shape != (len(targets), outputs, *self._space) or outputs < self._classes:
            return f"outputs of shape {tuple(output.shape)} are not one per class of {self._classes}"
        self._outputs = outputs
        labels = targets[:, 0]
        labeled = labels >= 0
        self._labels += int(labeled.sum())
        if outputs > self._classes:
            counts = torch.bincount(labels[labeled], minlength=self._classes)
            self._counts = counts if self._counts is None else self._counts + counts
        # The maximum shows NaN too, of which no prediction can be made.
        largest, predicted = output.max(1)
        counts_now = torch.stack([(predicted == labels.to(output.device)).sum(), torch.isnan(largest).sum()])
        self._correct = counts_now if self._correct is None else self._correct + counts_now
        return ""

    def result(self) -> Correct | None:
        """The counts after a whole pass; None if predictions cannot be counted."""
        if not self._fault and self._correct is not None:
            correct, undefined = (int(count) for count in self._correct)
            labels, most = self._labels, 0 if self._counts is None else int(self._counts.max())
            if undefined:
                self._fault = "outputs are NaN"
            elif not labels:
                self._fault = "there are no labels"
            elif self._counts is not None and correct - most <= _SURE * (most * (1 - most / labels)) ** 0.5:
                self._fault = (
                    f"{self._outputs} outputs for {self._classes} classes are no better than one guess for all"
                )
            else:
                return Correct(correct, labels)
        log.debug("no accuracy: %s", self._fault or "no pass")
        return None


__all__ = ["Accuracy", "Correct", "classes_of", "kind_of", "tensor_of"]
