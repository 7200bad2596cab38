"""Margins of the outputs, as a measure of genmeasures."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from genmeasures.plugin import (
    InputMean,
    OutputBatch,
    OutputMeasure,
    RankSample,
    Split,
    Undefined,
    Value,
    Variable,
    is_count,
    require,
)
from genmeasures_outputs.margins import squared_inverse
from genmeasures_outputs.options import check_split

_PIXELS = 1 << 32
"""More than the pixels of an input: the rank of a pixel is that of its input times this, plus its place."""


class OutputMargin(OutputMeasure):
    """Margins γ = f_y − max_{j≠y} f_j of the logits, negative where the prediction is wrong. Labels.

    - ``output_margin``: the mean, with its standard error over inputs.
    - ``output_margin_median`` and ``output_margin_p10``: the median and the 10th percentile γ₁₀, with their signs.
    - ``output_margin_inverse_squared``: 1/γ₁₀², undefined unless γ₁₀ > 0: the square would lose the sign.

    If all logits are multiplied by s, margins are multiplied by s and the last value by 1/s²: they compare networks
    whose logits are on one scale, as after training with the same loss. Of dense outputs every labeled pixel has a
    margin; the mean is over all of them, and the percentiles are those of a subsample, as the status says.

    Source: Jiang et al. 2020 (the inverse margin).

    Args:
        split: Split whose outputs are read, ``"train"``, ``"test"`` or ``"validation"``.
        size: Number of pixels of the subsample for the percentiles of dense outputs. It depends on the seed and on the
            contents of the inputs. Outputs of one row per input are all kept.

    Raises:
        OptionError: If an option is not one of these values.

    Example:
        >>> from genmeasures.plugin import evaluate
        >>> logits, labels = np.array([[3.0, 1.0], [0.0, 5.0], [0.0, 1.0]]), np.array([0, 1, 0])
        >>> found = evaluate(OutputMargin(), {"train": (logits, labels)})
        >>> found["output_margin"].value, found["output_margin_median"].value
        (2.0, 2.0)
        >>> found["output_margin_inverse_squared"].status
        'undefined: the 10th percentile of the margins is -0.4, and must be positive'
    """

    name = "output_margin"
    variables = (
        *Variable("output_margin", "mean margin of the logits", dims=()).with_error(),
        Variable("output_margin_median", "median margin of the logits", dims=()),
        Variable("output_margin_p10", "10th percentile of the margins of the logits", dims=()),
        Variable(
            "output_margin_inverse_squared",
            "inverse square of the 10th percentile of the margins",
            expected_gap=1,
            expected_gap_source="Jiang et al. 2020: a complexity measure, of the training margins",
            references="Jiang et al. 2020, Fantastic generalization measures and where to find them",
            bounds=(0, math.inf),
            dims=(),
        ),
    )

    def __init__(self, split: Split = "train", size: int = 100_000) -> None:
        check_split(self, split)
        require(is_count(size, 10), self, f"size must be an integer ≥ 10, got {size!r}")
        self.split = split
        self.size = size

    @property
    def splits(self) -> tuple[Split, ...]:
        """The split of the option."""
        return (self.split,)

    def start(self, generator: torch.Generator) -> None:
        """See :meth:`OutputMeasure.start`."""
        self._mean = InputMean()
        self._rows: list[Tensor] = []
        salt = int(torch.randint(2**62, (1,), generator=generator, device=generator.device))
        self._pixels = RankSample(self.size, salt)
        self._seen = 0
        self._dense = False

    def update(self, batch: OutputBatch) -> None:
        """See :meth:`OutputMeasure.update`."""
        rows = batch.labeled
        logits, labels = rows.logits.double(), rows.labels[:, None]
        gamma = logits.gather(1, labels)[:, 0] - logits.scatter(1, labels, -math.inf).amax(1)
        self._mean.add(rows.inputs, gamma)
        self._seen += len(rows)
        if batch.outputs.dim() == 2:
            self._rows.append(gamma)
            return
        self._dense = True
        flat = batch.flat
        places = (flat.labels >= 0).nonzero()[:, 0] % (len(flat) // len(batch))
        ranks = rows.inputs * _PIXELS + places
        chosen = self._pixels.chosen(ranks)
        if len(chosen):
            self._pixels.add(ranks[chosen], gamma[chosen])

    def compute(self) -> Mapping[str, float | Value | Undefined]:
        """See :meth:`OutputMeasure.compute`."""
        if not self._seen:
            raise Undefined("no output has a label")
        gamma = self._pixels.result()[0] if self._dense else torch.cat(self._rows)
        tenth, median = (float(value) for value in np.quantile(gamma.cpu().numpy(), [0.1, 0.5]))
        subsampled = self._dense and self._seen > self.size
        note = f"a subsample of {self.size} of {self._seen} pixels" if subsampled else ""
        inverse: Value | Undefined
        try:
            inverse = Value(squared_inverse(tenth), note)
        except Undefined as reason:
            inverse = reason
        return {
            **self._mean.values("output_margin"),
            "output_margin_median": Value(median, note),
            "output_margin_p10": Value(tenth, note),
            "output_margin_inverse_squared": inverse,
        }


__all__ = ["OutputMargin"]
