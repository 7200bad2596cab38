"""What layers a model has, in the order it runs them, and what each reads: one traced forward pass."""

from genmeasures.tracing.geometry import Geometry, geometry_of
from genmeasures.tracing.layout import fastest_layout
from genmeasures.tracing.patches import LayerReader, StoredPatches
from genmeasures.tracing.tap import Tap, tapped
from genmeasures.tracing.trace import Trace, TracedLayer, trace

__all__ = [
    "Geometry",
    "LayerReader",
    "StoredPatches",
    "Tap",
    "Trace",
    "TracedLayer",
    "fastest_layout",
    "geometry_of",
    "tapped",
    "trace",
]
