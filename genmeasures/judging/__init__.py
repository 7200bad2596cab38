"""Judgment of measures: correlations with test accuracy and the generalization gap, and scores on grids."""

from genmeasures.judging.bootstrap import bca_interval
from genmeasures.judging.correlation import kendall, pearson, spearman
from genmeasures.judging.granulated import GranulatedKendall, granulated_kendall
from genmeasures.judging.interchange import read_predictions, read_table, write_predictions
from genmeasures.judging.judge import judge
from genmeasures.judging.mean_scores import score_table
from genmeasures.judging.mutual_information import conditional_mutual_information
from genmeasures.judging.partial import partial_pearson, partial_spearman
from genmeasures.judging.pgdl import pgdl_pairs, pgdl_score
from genmeasures.judging.published import published_scores
from genmeasures.judging.resampling import dummies, group_codes, resample_counts
from genmeasures.judging.sign_error import sign_errors, worst_sign_error

__all__ = [
    "GranulatedKendall",
    "bca_interval",
    "conditional_mutual_information",
    "dummies",
    "granulated_kendall",
    "group_codes",
    "judge",
    "kendall",
    "partial_pearson",
    "partial_spearman",
    "pearson",
    "pgdl_pairs",
    "pgdl_score",
    "published_scores",
    "read_predictions",
    "read_table",
    "resample_counts",
    "score_table",
    "sign_errors",
    "spearman",
    "worst_sign_error",
    "write_predictions",
]
