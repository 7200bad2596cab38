"""Figures of one model: its features, and what a result holds of it.

Every function returns a matplotlib :class:`~matplotlib.figure.Figure`, which is not part of pyplot's global state:
``figure.savefig("figure.pdf")`` writes it, and a notebook shows it.
"""

from genmeasures.plot.ablation import ablation
from genmeasures.plot.bounds import bounds
from genmeasures.plot.clusters import clusters
from genmeasures.plot.images import images
from genmeasures.plot.manifold import manifold
from genmeasures.plot.profile import profile
from genmeasures.plot.regions import regions

__all__ = ["ablation", "bounds", "clusters", "images", "manifold", "profile", "regions"]
