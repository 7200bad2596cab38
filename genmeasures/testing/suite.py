"""Which checks a component has to pass, and how they are run."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias
from unittest import SkipTest

from genmeasures.interfaces import Aggregator, Component, Extractor, Labeler, Measure
from genmeasures.testing import aggregators, components, extractors, labelers, measures

Check: TypeAlias = Callable[[Any], None]

_CHECKS: tuple[tuple[type[Component], Sequence[Check]], ...] = (
    (Component, components.CHECKS),
    (Extractor, extractors.CHECKS),
    (Labeler, labelers.CHECKS),
    (Measure, measures.CHECKS),
    (Aggregator, aggregators.CHECKS),
)


def checks_for(component: Component) -> list[Check]:
    """The checks that a component has to pass, functions of the component.

    They raise AssertionError with what the component did, and :class:`unittest.SkipTest` with the reason
    where they do not apply to it; pytest reports the first as failed, the second as skipped.
    """
    return [check for base, checks in _CHECKS if isinstance(component, base) for check in checks]


def parametrize_with_checks(given: Sequence[Component]) -> Any:
    """Decorator for a test of (component, check): runs it with every check of every component. Needs pytest.

    A check that does not apply to a component is reported as skipped, with the reason.
    """
    import pytest

    cases = [
        pytest.param(component, check, id=f"{getattr(component, 'name', type(component).__name__)}-{name_of(check)}")
        for component in given
        for check in checks_for(component)
    ]
    return pytest.mark.parametrize(("component", "check"), cases)


@dataclass(frozen=True)
class Checked:
    """What a check found."""

    name: str
    asked: str
    """What the check asks of a component, in a sentence."""
    status: Literal["passed", "failed", "skipped"]
    message: str
    """What went wrong, or why the check does not apply; "" where it passed."""


def run_checks(component: Component) -> Iterator[Checked]:
    """Run all checks of a component, one after another.

    Args:
        component: an extractor, labeler, measure or aggregator.

    Yields:
        What each check found; a failure of any kind is recorded, none is raised.

    Example:
        >>> from genmeasures.aggregators import Mean
        >>> [one.name for one in run_checks(Mean()) if one.status == "failed"]
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
    """What an error says; where it says nothing, the line that raised it."""
    text = str(error).strip()
    if not text:
        last = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__} at {last.filename}:{last.lineno}: {last.line}"
    return text if isinstance(error, AssertionError) else f"{type(error).__name__}: {text}"


def name_of(check: Check) -> str:
    """A check's name without its prefix."""
    return check.__name__.removeprefix("check_")
