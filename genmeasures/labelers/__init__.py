"""Labelers: one integer for every vector, from targets or from the features themselves."""

from genmeasures.labelers.downsampled import Downsampled
from genmeasures.labelers.histogram import Histogram
from genmeasures.labelers.image import Image
from genmeasures.labelers.kmeans import KMeans

__all__ = ["Downsampled", "Histogram", "Image", "KMeans"]
