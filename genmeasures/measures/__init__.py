"""The measures of Rajagopal et al. 2021."""

from genmeasures.measures.confidence import Confidence
from genmeasures.measures.davies_bouldin import DaviesBouldin
from genmeasures.measures.roughness import Roughness

__all__ = ["Confidence", "DaviesBouldin", "Roughness"]
