"""Aggregators, which reduce the layers of each model to one number."""

from genmeasures.aggregators.aggregate import aggregate
from genmeasures.aggregators.explicit import Explicit
from genmeasures.aggregators.maximum import Max
from genmeasures.aggregators.means import Frobenius, LastK, Mean, MeanWeight
from genmeasures.aggregators.single import SingleLayer

__all__ = ["Explicit", "Frobenius", "LastK", "Max", "Mean", "MeanWeight", "SingleLayer", "aggregate"]
