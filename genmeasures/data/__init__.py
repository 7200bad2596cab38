"""The data that models are run on: one view of arrays, Datasets and DataLoaders, checked before any model runs."""

from genmeasures.data.keys import content_keys, mix
from genmeasures.data.source import Batch, DataSource, TargetInfo

__all__ = ["Batch", "DataSource", "TargetInfo", "content_keys", "mix"]
