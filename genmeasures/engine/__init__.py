"""The engine: lays the passes of all labelers and measures of a run over each other."""

from genmeasures.engine.model import ModelResult, Outcome, measure_model
from genmeasures.engine.prepared import PreparedData, prepare_data, prepare_measures

__all__ = ["ModelResult", "Outcome", "PreparedData", "measure_model", "prepare_data", "prepare_measures"]
