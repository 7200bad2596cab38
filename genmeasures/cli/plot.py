"""Command ``genmeasures plot``: a figure of one model, from its features or from a result file."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_module
from hydra.core.plugins import Plugins
from matplotlib.figure import Figure
from omegaconf import DictConfig, ListConfig

from genmeasures import plot
from genmeasures.cli.complaints import message_for
from genmeasures.cli.components import make_component
from genmeasures.cli.overrides import readable
from genmeasures.cli.plot_arguments import MODEL_KINDS
from genmeasures.cli.search_path import CONFIGS, SearchPath
from genmeasures.errors import OptionError, ResultError, nearest
from genmeasures.failures import debugging
from genmeasures.interfaces import Extractor, Labeler, Task, TaskModel
from genmeasures.report import make_console, print_line
from genmeasures.report.drawing import FORMATS, plain, write_figure
from genmeasures.results import load

_READ = ("task", "extractor", "labeler", "experiment", "seed", "device", "batch_size", "tile", "memory", "ignore_index")
"""First words of the overrides that a figure depends on."""
_INSTEAD = {"layers": "--layer NAME", "output": "--output FILE"}
"""Options that replace settings of a run."""


def plot_command(parsed: argparse.Namespace) -> int:
    """Draw a figure and write it.

    Args:
        parsed: the arguments after ``genmeasures``, as :mod:`genmeasures.cli.plot_arguments` declares them.

    Returns:
        The exit status.

    Raises:
        GenmeasuresError: a file, model, layer or option is wrong.

    Example:
        >>> plot_command(argparse.Namespace(kind="ablation", result="no.nc", output=None, model=None))
        Traceback (most recent call last):
            ...
        genmeasures.errors.ResultError: there is no result file no.nc
    """
    if parsed.kind in MODEL_KINDS:
        path = Path(parsed.output or f"{parsed.kind}.png")
        _check_output(path)
        try:
            figure = _of_model(parsed)
        except Exception as error:
            line = message_for(error, parsed.overrides)
            if line is None or debugging():
                raise
            print(line, file=sys.stderr)
            return 1
    else:
        result = Path(parsed.result)
        path = Path(parsed.output) if parsed.output else result.with_name(f"{result.stem}-{parsed.kind}.png")
        ds = load(result)
        _check_output(path)
        figure = _FROM_RESULT[parsed.kind](ds, parsed)
    write_figure(figure, path)
    print_line(make_console(), f"figure: {path}")
    return 0


_FROM_RESULT: dict[str, Callable[[Any, argparse.Namespace], Figure]] = {
    "ablation": lambda ds, parsed: plot.ablation(ds, parsed.model, layers=parsed.layer, measure=parsed.measure),
    "bounds": lambda ds, parsed: plot.bounds(ds, parsed.model, measure=parsed.measure),
    "images": lambda ds, parsed: plot.images(
        ds, parsed.model, layer=parsed.layer, measures=parsed.measure or ["ars"], kernels=parsed.kernels
    ),
    "regions": lambda ds, parsed: plot.regions(ds, parsed.model, measure=parsed.measure),
    "profile": lambda ds, parsed: plot.profile(ds, parsed.model, trajectory=parsed.trajectory, measure=parsed.measure),
}


def _check_output(path: Path) -> None:
    """Raise ResultError if the figure cannot be written, before it is computed."""
    form = path.suffix.removeprefix(".").lower()
    if form not in FORMATS:
        raise ResultError(
            f"--output {path}: the name must end in .png, .pdf or .svg, got {path.suffix or 'no ending'!r}"
        )
    if path.is_dir():
        raise ResultError(f"--output {path}: this is a folder")
    if not path.parent.is_dir():
        raise ResultError(f"--output {path}: there is no folder {path.parent}")
    if not os.access(path.parent, os.W_OK):
        raise ResultError(f"--output {path}: {path.parent} is not writable: choose another folder, --output FILE")


def _of_model(parsed: argparse.Namespace) -> Figure:
    """The figure of a model of a task."""
    config = _composed(parsed.overrides)
    task: Task = make_component(config, "task", Task)
    model = _chosen(task.models(), parsed.model)
    train = task.data("train") if model.train is None else model.train
    if train is None:
        raise OptionError(f"the task {task.name} has no training data, which the figure needs")
    options = {
        "extractor": make_component(config, "extractor", Extractor),
        "seed": config.seed,
        "device": config.device or "cpu",
        "batch_size": config.batch_size,
        "tile": list(config.tile) if isinstance(config.tile, ListConfig) else config.tile,
        "memory": config.memory,
        "ignore_index": task.ignore_index if config.ignore_index is None else config.ignore_index,
    }
    if parsed.kind == "clusters":
        if "labeler" in config:
            raise OptionError("labeler: the clusters are those of k-means: leave labeler out, and set --k")
        settings = {"k": parsed.k, "components": parsed.components, "mixtures": parsed.mixtures}
        return plot.clusters(model.build, train, parsed.layer, **settings, **options)
    labeler = make_component(config, "labeler", Labeler) if "labeler" in config else None
    settings = {"layers": parsed.layer, "labeler": labeler, "dimensions": parsed.dimensions}
    figure = plot.manifold(model.build, train, **settings, **options)
    figure.suptitle(plain(model.name), fontsize=11)
    return figure


def _composed(overrides: Sequence[str]) -> DictConfig:
    """The configuration of a run; the labeler is a choice of its own."""
    Plugins.instance().register(SearchPath)
    for override in overrides:
        key = override.lstrip("+~").partition("=")[0]
        word = key.replace("@", ".").replace("/", ".").partition(".")[0]
        if word in _INSTEAD:
            raise OptionError(f"{override}: write {_INSTEAD[word]}")
        if word not in _READ:
            raise OptionError(f"{override}: a figure does not depend on the setting {word!r}{nearest(word, _READ)}")
    added = [f"+{override}" if override.startswith("labeler=") else override for override in readable(overrides)]
    with initialize_config_module(CONFIGS, version_base="1.3"):
        return compose("run", added)


def _chosen(models: Sequence[TaskModel], name: str | None) -> TaskModel:
    """The model of that name, or the first."""
    names = [model.name for model in models]
    if not models:
        raise OptionError("the task has no models")
    if name is not None and name not in names:
        raise OptionError(f"--model {name}: the task has no such model{nearest(name, names)}")
    return models[0 if name is None else names.index(name)]
