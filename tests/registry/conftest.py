"""Registries without the plugins that happen to be installed, and plugins made for a test."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from genmeasures.registry import registry
from genmeasures.registry.manager import STRICT


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A registry of its own for each test, without the plugins that happen to be installed."""
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [])
    monkeypatch.delenv(STRICT, raising=False)
    registry.cache_clear()
    yield
    registry.cache_clear()


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """``install(name=source, …)``: modules that entry points of the group ``genmeasures`` point to."""
    points: list[importlib.metadata.EntryPoint] = []

    def entry_points(group: str) -> list[importlib.metadata.EntryPoint]:
        return points if group == "genmeasures" else []

    def add(**sources: str) -> None:
        for name, source in sources.items():
            module = f"{tmp_path.name.replace('-', '_')}_{name}"
            (tmp_path / f"{module}.py").write_text(source)
            points.append(importlib.metadata.EntryPoint(name, module, "genmeasures"))
        registry.cache_clear()

    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(importlib.metadata, "entry_points", entry_points)
    add.points = points  # type: ignore[attr-defined]
    return add
