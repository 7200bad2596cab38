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
    def genmeasures_register(register):
        register(Sparsity)

with the entry point ``[project.entry-points.genmeasures]`` ``sparsity = "my_module"``.

A measure of features finds the length of a vector in ``self.extractor.vector_size(layer)``; a measure of the model
finds the module and the weight of a layer in ``data.module(layer)`` and ``data.weight(layer)``, and the name,
hyperparameters and metrics of the model in ``data.facts``. An extractor returns :class:`Drawn` or :class:`Every` from
``sample``, and draws with :func:`mix` and :func:`places`.
"""

from genmeasures.data.keys import mix
from genmeasures.errors import (
    ComponentError,
    DataError,
    GenmeasuresError,
    ModelError,
    OptionError,
    ResultError,
    Undefined,
)
from genmeasures.extractors.samples import Drawn, Every, places
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
    ModelFacts,
    ModelMeasure,
    ModelValue,
    Pass,
    PatchReader,
    PatchSet,
    Sample,
    Split,
    TargetLabeler,
    Task,
    TaskModel,
    Value,
    Values,
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
    "ComponentError",
    "DataError",
    "Drawn",
    "Every",
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
    "ModelFacts",
    "ModelMeasure",
    "ModelValue",
    "OptionError",
    "Pass",
    "PatchReader",
    "PatchSet",
    "Register",
    "ResultError",
    "Sample",
    "Split",
    "TargetLabeler",
    "Task",
    "TaskModel",
    "Trace",
    "TracedLayer",
    "Undefined",
    "Value",
    "Values",
    "Variable",
    "hookimpl",
    "is_count",
    "mix",
    "one_of",
    "places",
    "require",
    "tapped",
    "trace",
]
