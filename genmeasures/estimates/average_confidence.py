"""Average confidence, and difference of confidences."""

from __future__ import annotations

from genmeasures.estimates.outputs import Outputs, per_input
from genmeasures.estimates.resampling import Estimator, Floats


def known_accuracy(validation: Outputs) -> Estimator:
    """Estimator that returns the accuracy on the validation data, as if there were no shift: the baseline.

    Args:
        validation: labeled outputs.

    Returns:
        Percent, of weights (R, inputs) of both splits.

    Example:
        >>> import numpy as np
        >>> validation = Outputs.of([[1.0, 0.0], [1.0, 0.0]], [0, 1])
        >>> known_accuracy(validation)(np.ones((1, 2)), np.ones((1, 5)))
        array([50.])
    """
    correct, labels = per_input(validation.correct), per_input(validation.labeled)
    return lambda of_validation, of_target: 100 * (of_validation @ correct) / (of_validation @ labels)


def average_confidence(target: Outputs) -> Estimator:
    """Estimator AC: the mean of the largest probability, which is the accuracy of calibrated outputs.

    Args:
        target: outputs; labels are not read.

    Returns:
        Percent, of weights (R, inputs) of both splits; validation inputs are not read.

    Source: Hendrycks & Gimpel, A Baseline for Detecting Misclassified and Out-of-Distribution Examples (2017), the
    confidence.

    Example:
        >>> import numpy as np
        >>> target = Outputs.of([[0.0, 0.0], [0.0, 100.0]])
        >>> average_confidence(target)(np.ones((1, 1)), np.ones((1, 2)))
        array([75.])
    """
    sums, pixels = per_input(target.confidence), target.confidence[0].size
    return lambda of_validation, of_target: 100 * (of_target @ sums) / (of_target.sum(1) * pixels)


def difference_of_confidences(validation: Outputs, target: Outputs) -> Estimator:
    """Estimator DoC: the validation accuracy, minus the drop of average confidence from validation to target.

    Nothing keeps the estimate within 0 to 100 percent.

    Args:
        validation: labeled outputs; only labeled pixels count.
        target: outputs; labels are not read.

    Returns:
        Percent, of weights (R, inputs) of both splits.

    Source: Guillory et al., Predicting with Confidence on Unseen Distributions (2021), with the difference itself and
    not a regression on it.

    Example:
        >>> import numpy as np
        >>> validation = Outputs.of([[0.0, 100.0], [0.0, 100.0]], [1, 1])
        >>> target = Outputs.of([[0.0, 0.0], [0.0, 100.0]])
        >>> difference_of_confidences(validation, target)(np.ones((1, 2)), np.ones((1, 2)))
        array([75.])
    """
    accuracy, confidence = known_accuracy(validation), average_confidence(target)
    labeled = validation.labeled
    sums, labels = per_input(validation.confidence, labeled), per_input(labeled)

    def estimate(of_validation: Floats, of_target: Floats) -> Floats:
        before = 100 * (of_validation @ sums) / (of_validation @ labels)
        return accuracy(of_validation, of_target) - (before - confidence(of_validation, of_target))

    return estimate


__all__ = ["average_confidence", "difference_of_confidences", "known_accuracy"]
