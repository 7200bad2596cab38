"""Figures of one model: its features, and what a result holds of it."""

from genmeasures.plot.clusters import clusters
from genmeasures.plot.manifold import manifold

__all__ = ["clusters", "manifold"]
