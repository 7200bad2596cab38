"""Judging measures: how well do they go with test accuracy and with the generalization gap?"""

from genmeasures.judging.correlation import bootstrap_interval, kendall, pearson, resample_counts, spearman
from genmeasures.judging.judge import judge

__all__ = ["bootstrap_interval", "judge", "kendall", "pearson", "resample_counts", "spearman"]
