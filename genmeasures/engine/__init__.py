"""The engine: lays the passes of all labelers and measures of a run over each other."""

from genmeasures.engine.accuracy import Correct
from genmeasures.engine.model import ModelResult, measure_model
from genmeasures.engine.passes import Progress
from genmeasures.engine.prepared import PreparedData, prepare_data, prepare_measures
from genmeasures.engine.running import Outcome

__all__ = [
    "Correct",
    "ModelResult",
    "Outcome",
    "PreparedData",
    "Progress",
    "measure_model",
    "prepare_data",
    "prepare_measures",
]
