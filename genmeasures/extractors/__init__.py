"""Extractors: what a vector of a layer is, and which vectors are sampled."""

from genmeasures.extractors.receptive_field import ReceptiveField
from genmeasures.extractors.whole_tensor import WholeTensor

__all__ = ["ReceptiveField", "WholeTensor"]
