"""Margins, confidence, calibration and the distribution of the outputs of a network, as measures and functions."""

from __future__ import annotations

from genmeasures.plugin import Register, hookimpl
from genmeasures_outputs.calibration import brier_score, calibration_error, negative_log_likelihood
from genmeasures_outputs.calibration_measure import Calibration
from genmeasures_outputs.confidence import average_confidence, energy, entropy
from genmeasures_outputs.confidence_measure import OutputConfidence
from genmeasures_outputs.distribution import dispersion, mano, meta_distribution_energy, nuclear_norm
from genmeasures_outputs.distribution_measure import OutputDistribution
from genmeasures_outputs.margin_measure import OutputMargin
from genmeasures_outputs.margins import inverse_squared_margin, margin_statistics, margins

__all__ = [
    "Calibration",
    "OutputConfidence",
    "OutputDistribution",
    "OutputMargin",
    "average_confidence",
    "brier_score",
    "calibration_error",
    "dispersion",
    "energy",
    "entropy",
    "inverse_squared_margin",
    "mano",
    "margin_statistics",
    "margins",
    "meta_distribution_energy",
    "negative_log_likelihood",
    "nuclear_norm",
]


@hookimpl
def genmeasures_register(register: Register) -> None:
    """Register the measures."""
    for measure in (OutputMargin, OutputConfidence, Calibration, OutputDistribution):
        register(measure)
