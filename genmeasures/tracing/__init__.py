"""Layer discovery and observation: layers in running order, their receptive fields, and access to their tensors."""

from genmeasures.tracing.geometry import Geometry, geometry_of
from genmeasures.tracing.layout import fastest_layout
from genmeasures.tracing.patches import LayerReader, StoredPatches
from genmeasures.tracing.sketch import Sketch
from genmeasures.tracing.tap import Tap, tapped
from genmeasures.tracing.trace import OTHER_LAYERS, Trace, TracedLayer, forward, trace

__all__ = [
    "OTHER_LAYERS",
    "Geometry",
    "LayerReader",
    "Sketch",
    "StoredPatches",
    "Tap",
    "Trace",
    "TracedLayer",
    "fastest_layout",
    "forward",
    "geometry_of",
    "tapped",
    "trace",
]
