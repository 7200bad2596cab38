"""Everything that a plugin imports.

A plugin with one measure is one module::

    from genmeasures.plugin import FeatureMeasure, InputMean, Pass, Variable, hookimpl

    class Sparsity(FeatureMeasure):
        name = "sparsity"
        variables = Variable("sparsity", "fraction of zero activations", bounds=(0, 1)).with_error()
        passes = (Pass("test", "vectors"),)

        def start(self, layer, generator):
            self.zeros = InputMean()

        def update(self, batch):
            self.zeros.add(batch.inputs, (batch.vectors == 0).double().mean(1))

        def compute(self):
            return self.zeros.values("sparsity")

    @hookimpl
    def genmeasures_register(register):
        register(Sparsity)

and the entry point ``[project.entry-points.genmeasures]`` ``sparsity = "my_module"`` in ``pyproject.toml``. Its Hydra
config is derived from the constructor.

A mean over vectors has a standard error over inputs: ``Variable.with_error`` declares it, :class:`InputMean` computes
both. A feature measure gets the length of a vector from ``self.extractor.vector_size(layer)``. A measure of outputs,
:class:`OutputMeasure`, gets logits and targets; :func:`evaluate` computes it from stored ones. A model measure gets the
module and the weight of a layer from ``data.module(layer)`` and ``data.weight(layer)``, and the name, hyperparameters
and metrics of the model from ``data.facts``. An extractor returns :class:`Drawn` or :class:`Every` from ``sample``, and
draws with :func:`mix` and :func:`places`. A measure that cannot stream takes a :class:`RankSample` of the vectors.

A report reads results with :func:`load_result`, and prints tables with :class:`Column` and :func:`print_table`. The
functions for reports are imported on first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

from genmeasures.callbacks import at_end
from genmeasures.data.keys import mix
from genmeasures.devices import usable_device
from genmeasures.engine.outcome import Outcome
from genmeasures.engine.outputs import evaluate
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
from genmeasures.files import remove_stale_temporaries, temporary_path, write_atomically, write_folder_atomically
from genmeasures.generators import global_generators
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
    OutputBatch,
    OutputMeasure,
    Pass,
    PatchReader,
    PatchSet,
    Sample,
    Split,
    TargetLabeler,
    Task,
    TaskKind,
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
from genmeasures.statistics.input_mean import InputMean
from genmeasures.statistics.outputs import checked_logits, log_probabilities
from genmeasures.statistics.rank_sample import RankSample
from genmeasures.statistics.silhouette import silhouette
from genmeasures.tasks.archives import check_sizes
from genmeasures.tasks.cache import cache_folder, check_writable, load_checkpoint, save_checkpoint
from genmeasures.tasks.cnn import SmallCNN
from genmeasures.tasks.digits import split_digits
from genmeasures.tasks.pool import one_thread, run_in_processes, worker_count
from genmeasures.tasks.weights import load_weights
from genmeasures.tracing import Trace, TracedLayer, tapped, trace

if TYPE_CHECKING:
    from genmeasures.aggregators import Frobenius
    from genmeasures.judging import published_scores, score_table
    from genmeasures.report import Column, make_console, print_line, print_table, write_table, write_text
    from genmeasures.results import is_merged, settings_of
    from genmeasures.results import load as load_result

__all__ = [
    "SPLITS",
    "Aggregator",
    "ClassLabel",
    "Column",
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
    "Frobenius",
    "GenmeasuresError",
    "Histogram",
    "InputMean",
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
    "Outcome",
    "OutputBatch",
    "OutputMeasure",
    "Pass",
    "PatchReader",
    "PatchSet",
    "RankSample",
    "Register",
    "ResultError",
    "Sample",
    "SmallCNN",
    "Split",
    "TargetLabeler",
    "Task",
    "TaskKind",
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
    "checked_logits",
    "class_problem",
    "eager",
    "evaluate",
    "global_generators",
    "graph_memory",
    "hookimpl",
    "is_count",
    "is_merged",
    "load_checkpoint",
    "load_result",
    "load_weights",
    "log_probabilities",
    "make_console",
    "mix",
    "nearest",
    "one_of",
    "one_thread",
    "places",
    "print_line",
    "print_table",
    "published_scores",
    "remove_stale_temporaries",
    "require",
    "run_in_processes",
    "save_checkpoint",
    "score_table",
    "settings_of",
    "shown",
    "silhouette",
    "split_digits",
    "tapped",
    "temporary_path",
    "trace",
    "traced_layers",
    "usable_device",
    "worker_count",
    "write_atomically",
    "write_folder_atomically",
    "write_table",
    "write_text",
]

_LAZY = {
    "Column": "genmeasures.report",
    "Frobenius": "genmeasures.aggregators",
    "is_merged": "genmeasures.results",
    "load_result": "genmeasures.results",
    "make_console": "genmeasures.report",
    "print_line": "genmeasures.report",
    "print_table": "genmeasures.report",
    "published_scores": "genmeasures.judging",
    "score_table": "genmeasures.judging",
    "settings_of": "genmeasures.results",
    "write_table": "genmeasures.report",
    "write_text": "genmeasures.report",
}
"""Where the names for reports are defined."""


def __getattr__(name: str) -> Any:
    # Reports need pandas and matplotlib, which take a second to import: plugins of measures do not wait for them.
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), "load" if name == "load_result" else name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
