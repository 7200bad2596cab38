"""Labelers: an integer label for every vector, from targets or from features."""

from genmeasures.labelers.class_label import ClassLabel
from genmeasures.labelers.downsampled import Downsampled
from genmeasures.labelers.histogram import Histogram
from genmeasures.labelers.kmeans import KMeans

__all__ = ["ClassLabel", "Downsampled", "Histogram", "KMeans"]
