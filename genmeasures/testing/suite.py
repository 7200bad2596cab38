"""Which checks a component has to pass, and how they are run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

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
    """The checks that a component has to pass, functions of the component that raise AssertionError."""
    return [check for base, checks in _CHECKS if isinstance(component, base) for check in checks]


def parametrize_with_checks(given: Sequence[Component]) -> Any:
    """Decorator for a test of (component, check): runs it with every check of every component. Needs pytest."""
    import pytest

    cases = [
        pytest.param(component, check, id=f"{component.name}-{name_of(check)}")
        for component in given
        for check in checks_for(component)
    ]
    return pytest.mark.parametrize(("component", "check"), cases)


def run_checks(component: Component) -> Iterator[tuple[str, str, str]]:
    """(name, what is asked, what went wrong or "") of each check, one after another."""
    for check in checks_for(component):
        problem = ""
        try:
            check(component)
        except AssertionError as error:
            problem = str(error) or "it does not"
        except Exception as error:  # a component can fail in any way
            problem = f"{type(error).__name__}: {error}"
        yield name_of(check), (check.__doc__ or "").strip().splitlines()[0], problem


def name_of(check: Check) -> str:
    """A check's name without its prefix."""
    return check.__name__.removeprefix("check_")
