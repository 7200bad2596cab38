"""Everything that a plugin imports.

A plugin with one measure is one module::

    from genmeasures.plugin import FeatureMeasure, Pass, Variable, hookimpl

    class Sparsity(FeatureMeasure):
        name = "sparsity"
        variables = (Variable("sparsity", "fraction of zero activations"),)
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

and the entry point ``[project.entry-points.genmeasures]`` ``sparsity = "my_module"`` in ``pyproject.toml``. Its Hydra
config is derived from the constructor.

A feature measure gets the length of a vector from ``self.extractor.vector_size(layer)``. A model measure gets the
module and the weight of a layer from ``data.module(layer)`` and ``data.weight(layer)``, and the name, hyperparameters
and metrics of the model from ``data.facts``. An extractor returns :class:`Drawn` or :class:`Every` from ``sample``, and
draws with :func:`mix` and :func:`places`.
"""

from genmeasures.callbacks import at_end
from genmeasures.data.keys import mix
from genmeasures.devices import usable_device
from genmeasures.errors import (
    ComponentError,
    DataError,
    GenmeasuresError,
    ModelError,
    OptionError,
    ResultError,
    Undefined,
    nearest,
    shown,
)
from genmeasures.extractors.samples import Drawn, Every, places
from genmeasures.files import remove_stale_temporaries, write_atomically, write_folder_atomically
from genmeasures.interfaces import (
    SPLITS,
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
from genmeasures.labelers import ClassLabel, Downsampled, Histogram, KMeans
from genmeasures.model_tools import class_problem, eager, graph_memory, traced_layers
from genmeasures.registry.specs import Register, hookimpl
from genmeasures.tasks.archives import check_sizes
from genmeasures.tasks.cache import cache_folder, check_writable, load_checkpoint, save_checkpoint
from genmeasures.tasks.cnn import SmallCNN
from genmeasures.tasks.digits import split_digits
from genmeasures.tasks.pool import one_thread, run_in_processes, worker_count
from genmeasures.tracing import Trace, TracedLayer, tapped, trace

__all__ = [
    "SPLITS",
    "Aggregator",
    "ClassLabel",
    "Component",
    "ComponentError",
    "DataError",
    "Downsampled",
    "Drawn",
    "Every",
    "Extractor",
    "FeatureBatch",
    "FeatureLabeler",
    "FeatureMeasure",
    "GenmeasuresError",
    "Histogram",
    "KMeans",
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
    "SmallCNN",
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
    "at_end",
    "cache_folder",
    "check_sizes",
    "check_writable",
    "class_problem",
    "eager",
    "graph_memory",
    "hookimpl",
    "is_count",
    "load_checkpoint",
    "mix",
    "nearest",
    "one_of",
    "one_thread",
    "places",
    "remove_stale_temporaries",
    "require",
    "run_in_processes",
    "save_checkpoint",
    "shown",
    "split_digits",
    "tapped",
    "trace",
    "traced_layers",
    "usable_device",
    "worker_count",
    "write_atomically",
    "write_folder_atomically",
]
