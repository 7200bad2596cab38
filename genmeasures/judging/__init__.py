"""Judging measures: how well do they go with test accuracy and with the generalization gap?"""

from genmeasures.judging.correlation import kendall, partial_pearson, partial_spearman, pearson, spearman
from genmeasures.judging.interchange import read_predictions, read_table, write_predictions
from genmeasures.judging.judge import judge
from genmeasures.judging.pgdl import (
    GranulatedKendall,
    conditional_mutual_information,
    granulated_kendall,
    pgdl_pairs,
    pgdl_score,
    score_table,
    sign_errors,
    worst_sign_error,
)
from genmeasures.judging.published import published_scores
from genmeasures.judging.resampling import bca_interval, dummies, group_codes, resample_counts

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
