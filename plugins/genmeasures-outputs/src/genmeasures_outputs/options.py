"""Checks of the options of the measures."""

from __future__ import annotations

import math

from genmeasures.plugin import SPLITS, Component, one_of, require


def check_split(component: Component, split: object) -> None:
    """Check the option ``split``.

    Args:
        component: the measure.
        split: its option.

    Raises:
        OptionError: there is no such split.

    Example:
        >>> from genmeasures_outputs import Calibration
        >>> Calibration(split="training")
        Traceback (most recent call last):
            ...
        genmeasures.errors.OptionError: Calibration: split='training' is unknown (did you mean 'train'? known: test, \
train, validation)
    """
    one_of(component, "split", split, SPLITS)


def check_positive(component: Component, option: str, value: object) -> None:
    """Check an option that is a positive number.

    Args:
        component: the measure.
        option: name of the option.
        value: its value.

    Raises:
        OptionError: it is not one.

    Example:
        >>> from genmeasures_outputs import OutputConfidence
        >>> OutputConfidence(temperature=0)
        Traceback (most recent call last):
            ...
        genmeasures.errors.OptionError: OutputConfidence: temperature must be a positive number, got 0
    """
    number = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf
    require(number, component, f"{option} must be a positive number, got {value!r}")


__all__ = ["check_positive", "check_split"]
