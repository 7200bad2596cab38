"""The result of a run: one xarray.Dataset, model × layer, and the file it is kept in."""

import genmeasures.accessor  # noqa: F401 (registers ds.genmeasures)
from genmeasures.results.build import combine, model_dataset
from genmeasures.results.collect import Collected, collect
from genmeasures.results.schema import STATUS, judged_variables, measure_variables
from genmeasures.results.store import SCHEMA_VERSION, load, save, writable

__all__ = [
    "SCHEMA_VERSION",
    "STATUS",
    "Collected",
    "collect",
    "combine",
    "judged_variables",
    "load",
    "measure_variables",
    "model_dataset",
    "save",
    "writable",
]
