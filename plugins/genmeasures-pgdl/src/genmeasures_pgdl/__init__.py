"""PGDL tasks (Predicting Generalization in Deep Learning, NeurIPS 2020), as a plugin of genmeasures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from genmeasures.plugin import Register, hookimpl
from genmeasures_pgdl.task import PGDL

if TYPE_CHECKING:
    from genmeasures_pgdl.recipe import make_task

__all__ = ["PGDL", "make_task"]


def __getattr__(name: str) -> Any:
    # Imported on first use: `python -m genmeasures_pgdl.recipe` warns if the package has imported the module before.
    if name == "make_task":
        from genmeasures_pgdl.recipe import make_task

        return make_task
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@hookimpl
def genmeasures_register(register: Register) -> None:
    register(PGDL)


@hookimpl
def genmeasures_config_packages() -> list[str]:
    return ["genmeasures_pgdl.conf"]
