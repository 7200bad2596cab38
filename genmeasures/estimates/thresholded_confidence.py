"""Average thresholded confidence (ATC)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from genmeasures.estimates.outputs import Outputs, per_input
from genmeasures.estimates.resampling import Estimator, Floats, block_rows

_EXACT = 1 << 16
"""Number of validation scores up to which every score can be the threshold in a resample."""
_COARSE = 1 << 12
"""Number of thresholds, quantiles of the scores, in resamples of more scores."""


def thresholded_confidence(validation: Outputs, target: Outputs, score: str = "confidence") -> Estimator:
    """Estimator ATC: the fraction of target outputs with a score of at least t.

    t is the validation score for which the fraction of validation outputs below t is the validation error, or closest
    to it where scores are tied; the smaller one of two that are equally close; ∞ where that is closer still. If the
    target outputs are the validation outputs, and no scores are tied, the estimate is the validation accuracy.

    For more than 65,536 validation scores, as those of pixels, the thresholds of resamples are 4096 quantiles of them;
    that of all inputs is exact.

    Args:
        validation: labeled outputs; only labeled pixels count.
        target: outputs; labels are not read.
        score: "confidence" (the largest probability, MC) or "entropy" (the negative entropy, NE).

    Returns:
        Percent, of weights (R, inputs) of both splits.

    Source: Garg et al., Leveraging Unlabeled Data to Predict Out-of-Distribution Performance (2022).

    Example:
        >>> validation = Outputs.of([[0.0, 1.0], [0.0, 2.0], [0.0, 3.0], [0.0, 4.0]], [0, 1, 1, 1])
        >>> target = Outputs.of([[0.0, 1.5], [0.0, 2.0]])
        >>> thresholded_confidence(validation, target)(np.ones((1, 4)), np.ones((1, 2)))  # t is the second score
        array([50.])
    """
    labeled = validation.labeled
    wrong = per_input(labeled & ~validation.correct)
    known, owner = _flat(validation.score(score), labeled)
    new, new_owner = _flat(target.score(score), None)

    def among(candidates: Floats) -> _Thresholds:
        return _Thresholds(candidates, known, owner, len(validation), new, new_owner, len(target))

    candidates = np.unique(known)
    exact = coarse = among(candidates)
    shift = 0.0
    if len(candidates) > _EXACT:
        coarse = among(np.unique(np.quantile(known, np.linspace(0, 1, _COARSE), method="lower")))
        ones = np.ones((1, len(validation))), np.ones((1, len(target)))
        shift = float((exact.above(*ones, ones[0] @ wrong) - coarse.above(*ones, ones[0] @ wrong))[0])

    def estimate(of_validation: Floats, of_target: Floats) -> Floats:
        errors = of_validation @ wrong
        if len(errors) == 1 and (of_validation == 1).all() and (of_target == 1).all():
            return 100 * exact.above(of_validation, of_target, errors)
        rows = block_rows(coarse.size)
        parts = [
            coarse.above(of_validation[s : s + rows], of_target[s : s + rows], errors[s : s + rows])
            for s in range(0, len(errors), rows)
        ]
        return 100 * (np.concatenate(parts) + shift)

    return estimate


def _flat(scores: Floats, where: NDArray[np.bool_] | None) -> tuple[Floats, NDArray[np.int64]]:
    """The scores that count, and the input of each."""
    owner = np.broadcast_to(np.arange(len(scores)).reshape(-1, *[1] * (scores.ndim - 1)), scores.shape)
    if where is None:
        return scores.reshape(-1), owner.reshape(-1)
    return scores[where], owner[where]


class _Thresholds:
    """Weights of the scores of both splits between candidate thresholds, ascending."""

    def __init__(
        self,
        cells: Floats,
        known: Floats,
        owner: NDArray[np.int64],
        inputs: int,
        new: Floats,
        new_owner: NDArray[np.int64],
        new_inputs: int,
    ) -> None:
        self._known = _counts(np.searchsorted(cells, known, "right") - 1, owner, len(cells), inputs)
        # Column j: scores of at least the j-th candidate and below the next; column 0 is below all of them.
        self._new = _counts(np.searchsorted(cells, new, "right"), new_owner, len(cells) + 1, new_inputs)
        self.size = len(cells) + 1

    def above(self, of_validation: Floats, of_target: Floats, errors: Floats) -> Floats:
        """(R,): the fraction of target scores of at least the threshold, for the number of errors (R,)."""
        weights = (self._known @ of_validation.T).T
        # Sums of how often resamples have a score: integers, which are compared without rounding.
        below = np.zeros((len(weights), self.size))
        np.cumsum(weights, axis=1, out=below[:, 1:])
        chosen = np.abs(below - errors[:, None]).argmin(axis=1)
        at_most = np.cumsum((self._new @ of_target.T).T, axis=1)
        return np.asarray(1 - np.take_along_axis(at_most, chosen[:, None], 1)[:, 0] / at_most[:, -1])


def _counts(cells: NDArray[np.int64], owner: NDArray[np.int64], count: int, inputs: int) -> sparse.csr_matrix:
    """(cells, inputs): number of scores of each input in each cell."""
    ones = np.ones(len(cells))
    return sparse.coo_matrix((ones, (cells, owner)), shape=(count, inputs)).tocsr()


__all__ = ["thresholded_confidence"]
