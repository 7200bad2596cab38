"""What layers a model has, in the order it runs them, and what each reads: one traced forward pass."""

from genmeasures.tracing.geometry import Geometry, LayerReader, geometry_of
from genmeasures.tracing.tap import Tap, tapped
from genmeasures.tracing.trace import Trace, TracedLayer, trace

__all__ = ["Geometry", "LayerReader", "Tap", "Trace", "TracedLayer", "geometry_of", "tapped", "trace"]
