"""The Hydra callback of ``experiment=pgdl``: a multirun over all tasks of a folder, closed by one table."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from genmeasures.plugin import GenmeasuresError, at_end, cache_folder
from genmeasures_pgdl.folders import find_tasks
from genmeasures_pgdl.report import show_scores


class AllTasks(Callback):
    """Sweeps over the tasks below ``task.path`` and reports their official scores in one table at the end.

    An experiment names it under ``hydra.callbacks``; see ``conf/experiment/pgdl.yaml``.
    """

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Add a sweep over ``task.which`` unless the command line chooses tasks, and register the closing report."""
        at_end(functools.partial(show_scores, config))
        if any(override.lstrip("+").startswith("task.which=") for override in config.hydra.overrides.task):
            return
        # Hydra turns an exception raised here into a warning, so errors are left to the job, which raises them too.
        if OmegaConf.is_missing(config.task, "path"):
            return
        try:
            tasks = find_tasks(Path(config.task.path), cache_folder(config.task.cache, "pgdl"))
        except GenmeasuresError:
            return
        with read_write(config), open_dict(config):
            names = ",".join("'" + name.replace("'", "\\'") + "'" for name in tasks)
            config.hydra.sweeper.params = {**(config.hydra.sweeper.params or {}), "task.which": names}


__all__ = ["AllTasks"]
