"""The tasks of the competition "Predicting Generalization in Deep Learning" (PGDL, NeurIPS 2020)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from genmeasures.tasks.pgdl.task import PGDL

if TYPE_CHECKING:
    from genmeasures.tasks.pgdl.recipe import make_task

__all__ = ["PGDL", "make_task"]


def __getattr__(name: str) -> Any:
    # Imported when it is asked for: `python -m genmeasures.tasks.pgdl.recipe` warns of what was imported before it.
    if name == "make_task":
        from genmeasures.tasks.pgdl.recipe import make_task

        return make_task
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
