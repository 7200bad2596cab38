"""Everything that the author of a plugin imports.

A measure in ten lines::

    from genmeasures.plugin import FeatureMeasure, Pass, Variable, hookimpl

    class Sparsity(FeatureMeasure):
        name = "sparsity"
        variables = (Variable("sparsity", "share of zero activations"),)
        passes = (Pass("test", "vectors"),)

        def start(self, layer, generator):
            self.zeros = self.total = 0

        def update(self, batch):
            self.zeros += int((batch.vectors == 0).sum())
            self.total += batch.vectors.numel()

        def compute(self):
            return self.zeros / self.total

    @hookimpl
    def genmeasures_register_measures(register):
        register(Sparsity)

with the entry point ``[project.entry-points.genmeasures]`` ``sparsity = "my_module"``.
"""

from genmeasures.errors import DataError, GenmeasuresError, ModelError, OptionError, ResultError, Undefined
from genmeasures.interfaces import (
    Aggregator,
    Component,
    Extractor,
    FeatureBatch,
    FeatureLabeler,
    FeatureMeasure,
    Labeler,
    Layer,
    Measure,
    ModelData,
    ModelMeasure,
    ModelValue,
    Pass,
    PatchReader,
    PatchSet,
    Sample,
    TargetLabeler,
    Task,
    TaskModel,
    Value,
    Variable,
    is_count,
    one_of,
    require,
)
from genmeasures.registry.specs import Register, hookimpl
from genmeasures.tracing import Trace, TracedLayer, tapped, trace

__all__ = [
    "Aggregator",
    "Component",
    "DataError",
    "Extractor",
    "FeatureBatch",
    "FeatureLabeler",
    "FeatureMeasure",
    "GenmeasuresError",
    "Labeler",
    "Layer",
    "Measure",
    "ModelData",
    "ModelError",
    "ModelMeasure",
    "ModelValue",
    "OptionError",
    "Pass",
    "PatchReader",
    "PatchSet",
    "Register",
    "ResultError",
    "Sample",
    "TargetLabeler",
    "Task",
    "TaskModel",
    "Trace",
    "TracedLayer",
    "Undefined",
    "Value",
    "Variable",
    "hookimpl",
    "is_count",
    "one_of",
    "require",
    "tapped",
    "trace",
]
