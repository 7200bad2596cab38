"""Data: one view of arrays, Datasets and DataLoaders, checked before any model runs."""

from genmeasures.data.keys import content_keys, mix
from genmeasures.data.source import Batch, DataSource, read_alike
from genmeasures.data.targets import TargetInfo, check_ignore_index

__all__ = ["Batch", "DataSource", "TargetInfo", "check_ignore_index", "content_keys", "mix", "read_alike"]
