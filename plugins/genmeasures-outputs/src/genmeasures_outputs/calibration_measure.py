"""Likelihood and calibration of the probabilities, as a measure of genmeasures."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from genmeasures.plugin import InputMean, OutputBatch, OutputMeasure, Split, Undefined, Variable, is_count, require
from genmeasures_outputs.options import check_split


class Calibration(OutputMeasure):
    """Proper scores and the calibration of the probabilities p = softmax(f). Labels.

    - ``negative_log_likelihood``: the mean of −log p_y, in nats, with its standard error over inputs.
    - ``brier_score``: the mean of Σ_k (p_k − 1[y = k])², with its standard error over inputs.
    - ``expected_calibration_error``: Σ_b (n_b/N) abs(accuracy_b − confidence_b) over bins of equal width of the largest
      probability, each with its lower end. It grows with the number of bins, and is not 0 for calibrated outputs but
      of the order of √(bins/N).

    Of dense outputs every labeled pixel counts.

    Source: Brier 1950, in its form for several classes; Guo et al. 2017.

    Args:
        split: Split whose outputs are read, ``"train"``, ``"test"`` or ``"validation"``.
        bins: Number of bins.

    Raises:
        OptionError: If an option is not one of these values.

    Example:
        >>> from genmeasures.plugin import evaluate
        >>> stored = torch.tensor([[0.0, 100.0], [0.0, 100.0]]), torch.tensor([1, 0])  # sure, and half of it wrong
        >>> found = evaluate(Calibration(), {"test": stored})
        >>> found["negative_log_likelihood"].value, found["expected_calibration_error"].value
        (50.0, 0.5)
    """

    name = "calibration"
    variables = (
        *Variable(
            "negative_log_likelihood",
            "mean negative log-likelihood of the labels",
            units="nat",
            bounds=(0, math.inf),
            dims=(),
        ).with_error(),
        *Variable(
            "brier_score",
            "Brier score, the sum over classes",
            references="Brier 1950, Verification of forecasts expressed in terms of probability",
            bounds=(0, 2),
            dims=(),
        ).with_error(),
        Variable(
            "expected_calibration_error",
            "expected calibration error",
            references="Guo et al. 2017, On calibration of modern neural networks",
            bounds=(0, 1),
            dims=(),
        ),
    )

    def __init__(self, split: Split = "test", bins: int = 15) -> None:
        check_split(self, split)
        require(is_count(bins), self, f"bins must be an integer ≥ 1, got {bins!r}")
        self.split = split
        self.bins = bins

    @property
    def splits(self) -> tuple[Split, ...]:
        """The split of the option."""
        return (self.split,)

    def start(self, generator: torch.Generator) -> None:
        """See :meth:`OutputMeasure.start`."""
        self._likelihood = InputMean()
        self._brier = InputMean()
        self._gaps = torch.zeros(self.bins, dtype=torch.float64, device="cpu")
        self._seen = 0

    def update(self, batch: OutputBatch) -> None:
        """See :meth:`OutputMeasure.update`."""
        rows = batch.labeled
        logs, labels = rows.log_probabilities, rows.labels[:, None]
        p = logs.exp()
        self._likelihood.add(rows.inputs, -logs.gather(1, labels)[:, 0])
        self._brier.add(rows.inputs, (p - torch.zeros_like(p).scatter(1, labels, 1.0)).square().sum(1))
        confidence = p.amax(1)
        index = (confidence * self.bins).long().clamp(max=self.bins - 1)
        correct = (rows.predictions == rows.labels).double()
        # The count of a bin cancels: n_b |mean − mean| = |sum − sum|.
        self._gaps += torch.bincount(index, weights=correct - confidence, minlength=self.bins).cpu()
        self._seen += len(rows)

    def compute(self) -> Mapping[str, float | Undefined]:
        """See :meth:`OutputMeasure.compute`."""
        if not self._seen:
            raise Undefined("no output has a label")
        return {
            **self._likelihood.values("negative_log_likelihood"),
            **self._brier.values("brier_score"),
            "expected_calibration_error": float(self._gaps.abs().sum()) / self._seen,
        }


__all__ = ["Calibration"]
