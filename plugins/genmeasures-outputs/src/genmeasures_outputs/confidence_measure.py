"""Confidence, entropy and energy of the outputs, as a measure of genmeasures."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from genmeasures.plugin import InputMean, OutputBatch, OutputMeasure, Split, Undefined, Variable
from genmeasures_outputs.options import check_positive, check_split


class OutputConfidence(OutputMeasure):
    """Means of the confidence, the entropy and the energy of the outputs. No labels.

    With logits f and p = softmax(f):

    - ``average_confidence``: the mean of max p, between 1/K and 1.
    - ``output_entropy``: the mean of −Σ p log p, in nats, between 0 and log K.
    - ``output_energy``: the mean of −T log Σ exp(f/T). It is multiplied by s if both logits and temperature are, and
      moves by −c if c is added to all logits of an output, which leaves the other two as they are.

    All have standard errors over inputs. Of dense outputs the means are over all pixels, with a label or not.

    Source: Hendrycks & Gimpel 2017 (confidence); Liu et al. 2020 (energy).

    Args:
        split: Split whose outputs are read, ``"train"``, ``"test"`` or ``"validation"``.
        temperature: T of the energy.

    Raises:
        OptionError: If an option is not one of these values.

    Example:
        >>> from genmeasures.plugin import evaluate
        >>> found = evaluate(OutputConfidence(), {"test": torch.tensor([[0.0, 0.0], [0.0, 100.0]])})
        >>> found["average_confidence"].value, round(found["output_entropy"].value, 4)
        (0.75, 0.3466)
    """

    name = "output_confidence"
    variables = (
        *Variable(
            "average_confidence",
            "mean of the largest probability",
            references="Hendrycks & Gimpel 2017, A baseline for detecting misclassified and out-of-distribution "
            "examples in neural networks",
            bounds=(0, 1),
            dims=(),
        ).with_error(),
        *Variable(
            "output_entropy", "mean entropy of the probabilities", units="nat", bounds=(0, math.inf), dims=()
        ).with_error(),
        *Variable(
            "output_energy",
            "mean energy of the outputs",
            references="Liu et al. 2020, Energy-based out-of-distribution detection",
            dims=(),
        ).with_error(),
    )

    def __init__(self, split: Split = "test", temperature: float = 1.0) -> None:
        check_split(self, split)
        check_positive(self, "temperature", temperature)
        self.split = split
        self.temperature = temperature

    @property
    def splits(self) -> tuple[Split, ...]:
        """The split of the option."""
        return (self.split,)

    def start(self, generator: torch.Generator) -> None:
        """See :meth:`OutputMeasure.start`."""
        self._means = {name: InputMean() for name in ("average_confidence", "output_entropy", "output_energy")}

    def update(self, batch: OutputBatch) -> None:
        """See :meth:`OutputMeasure.update`."""
        rows = batch.flat
        logs, temperature = rows.log_probabilities, self.temperature
        p = logs.exp()
        self._means["average_confidence"].add(rows.inputs, p.amax(1))
        self._means["output_entropy"].add(rows.inputs, -(p * logs).sum(1))
        energy = -temperature * torch.logsumexp(rows.logits.double() / temperature, 1)
        self._means["output_energy"].add(rows.inputs, energy)

    def compute(self) -> Mapping[str, float | Undefined]:
        """See :meth:`OutputMeasure.compute`."""
        values: dict[str, float | Undefined] = {}
        for name, mean in self._means.items():
            values |= mean.values(name)
        return values


__all__ = ["OutputConfidence"]
