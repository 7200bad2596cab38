"""Selection and execution of the checks of a component."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias
from unittest import SkipTest

from genmeasures.interfaces import Aggregator, Component, Extractor, Labeler, Measure, OutputMeasure
from genmeasures.testing import aggregators, components, extractors, labelers, measures

Check: TypeAlias = Callable[[Any], None]

_CHECKS: tuple[tuple[type[Component], Sequence[Check]], ...] = (
    (Component, components.CHECKS),
    (Extractor, extractors.CHECKS),
    (Labeler, labelers.CHECKS),
    (Measure, measures.CHECKS),
    (OutputMeasure, measures.OUTPUT_CHECKS),
    (Aggregator, aggregators.CHECKS),
)


def checks_for(component: Component) -> list[Check]:
    """Return the checks that a component has to pass, functions of the component.

    A check raises AssertionError with what the component did, and :class:`unittest.SkipTest` with the reason if it does
    not apply. pytest reports the first as failed, the second as skipped.

    Example:
        >>> from genmeasures.aggregators import Mean
        >>> [check.__name__ for check in checks_for(Mean())][-1]
        'check_missing_layers'
    """
    return [check for base, checks in _CHECKS if isinstance(component, base) for check in checks]


def parametrize_with_checks(components: Sequence[Component]) -> Any:
    """Return a decorator that runs a test of (component, check) with every check of every component. Needs pytest.

    A check that does not apply to a component is skipped, with the reason.

    Example:
        >>> from genmeasures.aggregators import Mean
        >>> @parametrize_with_checks([Mean()])
        ... def test_conforms(component, check):
        ...     check(component)
    """
    import pytest

    cases = [
        pytest.param(component, check, id=f"{getattr(component, 'name', type(component).__name__)}-{name_of(check)}")
        for component in components
        for check in checks_for(component)
    ]
    return pytest.mark.parametrize(("component", "check"), cases)


@dataclass(frozen=True)
class Checked:
    """Result of a check."""

    name: str
    asked: str
    """What the check asks of a component, in one sentence."""
    status: Literal["passed", "failed", "skipped"]
    message: str
    """Why the check failed or does not apply; empty if it passed."""


def run_checks(component: Component) -> Iterator[Checked]:
    """Run all checks of a component, one after another.

    Args:
        component: Extractor, labeler, measure or aggregator.

    Yields:
        The result of each check. Failures of any kind are recorded and not raised.

    Example:
        >>> from genmeasures.aggregators import Mean
        >>> [check.name for check in run_checks(Mean()) if check.status == "failed"]
        []
    """
    for check in checks_for(component):
        status: Literal["passed", "failed", "skipped"] = "passed"
        message = ""
        try:
            check(component)
        except SkipTest as reason:
            status, message = "skipped", str(reason)
        except Exception as error:  # a component can fail in any way
            status, message = "failed", _told(error)
        yield Checked(name_of(check), (check.__doc__ or "").strip().splitlines()[0], status, message)


def _told(error: Exception) -> str:
    """The message of an error, or the line that raised it if it has no message."""
    text = str(error).strip()
    if not text:
        last = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__} at {last.filename}:{last.lineno}: {last.line}"
    return text if isinstance(error, AssertionError) else f"{type(error).__name__}: {text}"


def name_of(check: Check) -> str:
    """Return the name of a check without its prefix.

    Example:
        >>> def check_labels(component): ...
        >>> name_of(check_labels)
        'labels'
    """
    return check.__name__.removeprefix("check_")
