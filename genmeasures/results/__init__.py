"""The result of a run: one xarray.Dataset, model × layer, and the file it is stored in."""

import genmeasures.results.accessor  # noqa: F401 (registers ds.genmeasures)
from genmeasures.results.accuracy import with_accuracies
from genmeasures.results.collect import Collected, collect
from genmeasures.results.combine import combine
from genmeasures.results.model_dataset import model_dataset
from genmeasures.results.runs import differing, run_settings
from genmeasures.results.schema import STATUS, is_merged, judged_variables, measure_variables, settings_of
from genmeasures.results.store import SCHEMA_VERSION, load, save, writable

__all__ = [
    "SCHEMA_VERSION",
    "STATUS",
    "Collected",
    "collect",
    "combine",
    "differing",
    "is_merged",
    "judged_variables",
    "load",
    "measure_variables",
    "model_dataset",
    "run_settings",
    "save",
    "settings_of",
    "with_accuracies",
    "writable",
]
