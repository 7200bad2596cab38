"""Statistics of the outputs of a whole data set, as a measure of genmeasures."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from genmeasures.plugin import OutputBatch, OutputMeasure, Split, Undefined, Value, Variable, one_of, require
from genmeasures_outputs.distribution import CRITERION
from genmeasures_outputs.options import check_positive, check_split
from genmeasures_outputs.stacked_rows import StackedRows

_WIDEST = 4096
"""Classes up to which the nuclear norm is computed: it keeps a square matrix of them."""


class OutputDistribution(OutputMeasure):
    """Statistics of the outputs of all inputs together. No labels.

    With logits f (N, K) and P = softmax(f):

    - ``nuclear_norm``: ‖P‖_* / √(min(N, K) N), 1 if predictions are certain and classes balanced. It is undefined
      beyond 4,096 classes.
    - ``mano``: (1/(NK) Σ q^p)^{1/p}, between 1/K and K^{−1/p}. q is the Taylor approximation 1 + f + f²/2 of the
      exponential of logits minus the smallest one, divided by its sum over classes, if the mean of −log P over all
      outputs and classes is at most 5, and else the softmax. The status says if it is the softmax: values of models
      on the two sides do not compare, and ``normalization`` takes one for all of them.
    - ``meta_distribution_energy``: MDE, minus the mean log-softmax, over the data set, of the energies
      −T log Σ exp(f/T).

    None of them is invariant to the scale of the logits. Of dense outputs each pixel is an output, with a label or not.
    All are streamed, and no subsample is drawn.

    Source: Deng et al. 2023; Xie et al. 2024; Peng et al. 2024. They relate the values to the accuracies of one network
    on several test sets, not to those of several networks.

    Args:
        split: Split whose outputs are read, ``"train"``, ``"test"`` or ``"validation"``.
        order: The order p of MaNo.
        normalization: That of MaNo: ``"auto"`` as above, ``"taylor"`` or ``"softmax"``.
        temperature: T of the energies.
        centered: Whether log N is subtracted from MDE: it is then 0 for equal energies, and does not grow with N.

    Raises:
        OptionError: If an option is not one of these values.

    Example:
        >>> from genmeasures.plugin import evaluate
        >>> found = evaluate(OutputDistribution(centered=True), {"test": torch.zeros(8, 2)})
        >>> {name: round(outcome.value, 6) for name, outcome in found.items()}
        {'nuclear_norm': 0.5, 'mano': 0.5, 'meta_distribution_energy': 0.0}
    """

    name = "output_distribution"
    variables = (
        Variable(
            "nuclear_norm",
            "nuclear norm of the probabilities",
            references="Deng et al. 2023, Confidence and dispersity speak: characterizing prediction matrix for "
            "unsupervised accuracy estimation",
            bounds=(0, 1),
            dims=(),
        ),
        Variable(
            "mano",
            "matrix norm of normalized outputs (MaNo)",
            references="Xie et al. 2024, MaNo: exploiting matrix norm for unsupervised accuracy estimation under "
            "distribution shifts",
            bounds=(0, 1),
            dims=(),
        ),
        Variable(
            "meta_distribution_energy",
            "meta-distribution energy (MDE)",
            references="Peng et al. 2024, Energy-based automated model evaluation",
            bounds=(0, math.inf),
            dims=(),
        ),
    )

    def __init__(
        self,
        split: Split = "test",
        order: float = 4.0,
        normalization: str = "auto",
        temperature: float = 1.0,
        centered: bool = False,
    ) -> None:
        check_split(self, split)
        check_positive(self, "order", order)
        one_of(self, "normalization", normalization, ("auto", "taylor", "softmax"))
        check_positive(self, "temperature", temperature)
        require(isinstance(centered, bool), self, f"centered must be true or false, got {centered!r}")
        self.split = split
        self.order = order
        self.normalization = normalization
        self.temperature = temperature
        self.centered = centered

    @property
    def splits(self) -> tuple[Split, ...]:
        """The split of the option."""
        return (self.split,)

    def start(self, generator: torch.Generator) -> None:
        """See :meth:`OutputMeasure.start`."""
        self._rows = 0
        self._classes = 0
        self._probabilities = StackedRows()
        # Which of the two normalizations counts is known at the end.
        self._taylor = self._softmax = self._surprise = 0.0
        self._energies = 0.0
        self._log_sum = torch.tensor(-math.inf, dtype=torch.float64, device="cpu")

    def update(self, batch: OutputBatch) -> None:
        """See :meth:`OutputMeasure.update`."""
        rows = batch.flat
        logits, logs = rows.logits.double(), rows.log_probabilities
        p = logs.exp()
        self._rows += len(rows)
        self._classes = logits.shape[1]
        if self._classes <= _WIDEST:
            self._probabilities.add(p)

        shifted = logits - logits.amin(1, keepdim=True)
        taylor = 1 + shifted + shifted.square() / 2
        taylor /= taylor.sum(1, keepdim=True)
        self._taylor += float(taylor.pow(self.order).sum())
        self._softmax += float(p.pow(self.order).sum())
        self._surprise -= float(logs.sum())

        energies = -self.temperature * torch.logsumexp(logits / self.temperature, 1)
        self._energies += float(energies.sum())
        self._log_sum = torch.logaddexp(self._log_sum, energies.logsumexp(0).cpu())

    def compute(self) -> Mapping[str, float | Value | Undefined]:
        """See :meth:`OutputMeasure.compute`."""
        if not self._rows:
            raise Undefined("no outputs in the sample")
        return {
            "nuclear_norm": self._nuclear_norm(),
            "mano": self._mano(),
            "meta_distribution_energy": self._meta_distribution_energy(),
        }

    def _nuclear_norm(self) -> float | Undefined:
        if self._classes > _WIDEST:
            return Undefined(f"the nuclear norm of {self._classes} classes needs a square matrix of them")
        total = float(self._probabilities.singular_values().sum())
        return total / math.sqrt(min(self._rows, self._classes) * self._rows)

    def _mano(self) -> Value:
        count = self._rows * self._classes
        surprise = self._surprise / count
        certain = self.normalization == "auto" and surprise > CRITERION
        note = f"normalized by the softmax: −log p has the mean {surprise:.3g}, above {CRITERION:g}" if certain else ""
        total = self._softmax if certain or self.normalization == "softmax" else self._taylor
        return Value((total / count) ** (1 / self.order), note)

    def _meta_distribution_energy(self) -> float:
        value = float(self._log_sum) - self._energies / self._rows
        # It is at least log N by Jensen's inequality; rounding is not to make it less.
        log_count = math.log(self._rows)
        return max(value - log_count, 0.0) + (0.0 if self.centered else log_count)


__all__ = ["OutputDistribution"]
