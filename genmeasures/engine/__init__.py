"""The engine: as few passes over the data as the labelers and measures of a run together allow."""

from genmeasures.engine.accuracy import Correct
from genmeasures.engine.forward import Progress
from genmeasures.engine.memory import DEFAULT_MEMORY, Memory
from genmeasures.engine.model import ModelResult, measure_model
from genmeasures.engine.outcome import Outcome
from genmeasures.engine.prepare import PreparedData, prepare_data, prepare_measures

__all__ = [
    "DEFAULT_MEMORY",
    "Correct",
    "Memory",
    "ModelResult",
    "Outcome",
    "PreparedData",
    "Progress",
    "measure_model",
    "prepare_data",
    "prepare_measures",
]
