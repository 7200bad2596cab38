"""Estimated accuracies and Dice coefficients on data without labels, from stored outputs, and rankings of models."""

from genmeasures.estimates.estimate import METHODS, estimate_outputs
from genmeasures.estimates.outputs import Outputs
from genmeasures.estimates.ranking import rank
from genmeasures.estimates.stored import read_stored

__all__ = ["METHODS", "Outputs", "estimate_outputs", "rank", "read_stored"]
