"""Extractors: what counts as one vector of a layer, and which of them are sampled."""

from genmeasures.extractors.receptive_field import ReceptiveField
from genmeasures.extractors.whole_tensor import WholeTensor

__all__ = ["ReceptiveField", "WholeTensor"]
