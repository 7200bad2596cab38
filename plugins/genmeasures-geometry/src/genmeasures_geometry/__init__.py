"""Geometry of the features of a layer: neural collapse, spectra, intrinsic dimension, transferability and shift."""

from __future__ import annotations

from genmeasures.plugin import Register, hookimpl
from genmeasures_geometry.class_means import ClassMeans
from genmeasures_geometry.collapse import Collapse, center_disagreement, self_duality
from genmeasures_geometry.collapse_measure import NeuralCollapse
from genmeasures_geometry.dimension import (
    levina_bickel,
    local_dimensions,
    mackay_ghahramani,
    neighbor_distances,
    two_nn,
)
from genmeasures_geometry.dimension_measure import IntrinsicDimension
from genmeasures_geometry.labeled_moments import ClassMoments, LabeledMoments
from genmeasures_geometry.moments import Moments
from genmeasures_geometry.separation import bhattacharyya, coding_rate, trans_rate
from genmeasures_geometry.separation_measure import ClassSeparation
from genmeasures_geometry.shift import coral, frechet_distance, mmd
from genmeasures_geometry.shift_measure import SplitShift
from genmeasures_geometry.silhouette_measure import Silhouette
from genmeasures_geometry.similarity import MinibatchCKA, hsic, linear_cka
from genmeasures_geometry.spectrum import alpha_req, participation_ratio, rank_me, stable_rank
from genmeasures_geometry.spectrum_measure import FeatureSpectrum
from genmeasures_geometry.transfer_measure import Transferability
from genmeasures_geometry.transferability import (
    h_score,
    leep,
    log_me,
    log_me_regression,
    nce,
    shrinkage,
    shrunk_h_score,
)

__all__ = [
    "ClassMeans",
    "ClassMoments",
    "ClassSeparation",
    "Collapse",
    "FeatureSpectrum",
    "IntrinsicDimension",
    "LabeledMoments",
    "MinibatchCKA",
    "Moments",
    "NeuralCollapse",
    "Silhouette",
    "SplitShift",
    "Transferability",
    "alpha_req",
    "bhattacharyya",
    "center_disagreement",
    "coding_rate",
    "coral",
    "frechet_distance",
    "h_score",
    "hsic",
    "leep",
    "levina_bickel",
    "linear_cka",
    "local_dimensions",
    "log_me",
    "log_me_regression",
    "mackay_ghahramani",
    "mmd",
    "nce",
    "neighbor_distances",
    "participation_ratio",
    "rank_me",
    "self_duality",
    "shrinkage",
    "shrunk_h_score",
    "stable_rank",
    "trans_rate",
    "two_nn",
]


@hookimpl
def genmeasures_register(register: Register) -> None:
    """Register the measures."""
    for measure in (
        NeuralCollapse,
        Silhouette,
        FeatureSpectrum,
        IntrinsicDimension,
        Transferability,
        ClassSeparation,
        SplitShift,
    ):
        register(measure)
