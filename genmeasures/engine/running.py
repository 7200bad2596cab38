"""One measure on one layer, and what becomes of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genmeasures.engine.seeds import generator_for
from genmeasures.errors import ComponentError, GenmeasuresError, Undefined, nearest
from genmeasures.failures import status_of
from genmeasures.interfaces import (
    FeatureBatch,
    FeatureLabeler,
    FeatureMeasure,
    Field,
    Layer,
    Pass,
    TargetLabeler,
    Value,
    Variable,
)

FITTED_FIELDS: frozenset[Field] = frozenset({"projected", "projected_patches"})
"""What can be read of a batch only after the training sample has been fitted."""


@dataclass(frozen=True)
class Outcome:
    """A value with its status: "ok", "note: …" (valid, with a remark), or NaN with "undefined: …" or "failed: …".

    value: a number, or float64 (n,) where the variable has a dimension of its own.
    """

    value: float | NDArray[np.float64]
    status: str


def by_variable(method: str, values: object, variables: Sequence[Variable]) -> Mapping[str, Any]:
    """What a method of a measure returned, by the names of its variables; a single value is that of the only one.

    Raises ComponentError for a name that is missing, or that no variable has.

    Example:
        >>> by_variable("compute", {"men": 1.0}, [Variable("mean", "mean of the features")])
        Traceback (most recent call last):
            ...
        genmeasures.errors.ComponentError: compute gave a value for 'men', which is none of the variables \
(did you mean 'mean'? known: mean)
    """
    names = [variable.name for variable in variables]
    if not isinstance(values, Mapping):
        if len(names) > 1 or method == "measure":
            example = ", ".join(f"{name!r}: …" for name in names)
            raise ComponentError(f"{method} gave {_called(values)}, a dict of values is expected: {{{example}}}")
        return {names[0]: values}
    for name in values:
        if name not in names:
            raise ComponentError(
                f"{method} gave a value for {name!r}, which is none of the variables{nearest(str(name), names)}"
            )
    missing = [name for name in names if name not in values]
    if missing:
        raise ComponentError(
            f"{method} gave no value for {', '.join(missing)}; where there is none, give Undefined('why') in its place"
        )
    return values


def _called(value: object) -> str:
    return "None" if value is None else f"an object of type {type(value).__name__}"


def outcome(value: float | Value | Undefined | NDArray[np.float64], own: str = "") -> Outcome:
    """The outcome of a value as a measure returned it: a number that is not finite is none.

    own: the dimension of its own that the variable has, "" where it has none.
    """
    if isinstance(value, Undefined):
        return Outcome(float("nan"), status_of(value, "a measure"))
    array = isinstance(value, np.ndarray) and value.ndim > 0
    if array != bool(own):
        what = f"a NumPy array of shape {np.shape(value)}" if isinstance(value, np.ndarray) else _called(value)
        due = f"a NumPy array (n,), for the dimension {own!r}, is" if own else "a number is"
        raise ComponentError(f"the measure gave {what}, {due} expected")
    if isinstance(value, np.ndarray) and value.ndim:
        return _series(value)
    note = value.note if isinstance(value, Value) else ""
    given = value.value if isinstance(value, Value) else value
    try:
        number = float(given)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ComponentError(f"the measure gave {_called(given)}, a number is expected ({error})") from error
    if not np.isfinite(number):
        return Outcome(float("nan"), f"undefined: the measure gave {number}")
    return Outcome(number, f"note: {note}" if note else "ok")


def _series(values: NDArray[np.float64]) -> Outcome:
    """The outcome of a row of values (n,), of which those that are not finite are none."""
    if values.ndim != 1:
        raise GenmeasuresError(f"expected an array of 1 dimension, got {values.ndim}")
    made = np.where(np.isfinite(values), values, np.nan).astype(np.float64)
    missing = int(np.isnan(made).sum())
    if missing == len(made):
        return Outcome(made, "undefined: the measure gave no finite value")
    return Outcome(made, f"note: {missing} of {len(made)} values are not finite" if missing else "ok")


def noted(outcome: Outcome, note: str) -> Outcome:
    """The outcome with one more note in its status; a value that is missing has none.

    Example:
        >>> noted(noted(Outcome(1.0, "ok"), "one"), "two").status
        'note: one; two'
    """
    if not note or not (outcome.status == "ok" or outcome.status.startswith("note: ")):
        return outcome
    return Outcome(outcome.value, f"note: {note}" if outcome.status == "ok" else f"{outcome.status}; {note}")


class Running:
    """A measure on a layer: its passes to come, and its failure if it has failed.

    note: what the status of its values says besides.
    """

    def __init__(self, measure: FeatureMeasure, layer: Layer, seed: int, note: str = "") -> None:
        self.measure = measure
        self.layer = layer
        self._note = note
        self._seen = self._labeled = 0
        self.remaining = list(measure.passes)
        self.failure: str | None = None
        with _Guard(self):
            measure.start(layer, generator_for(seed, "measure", measure, layer.index))

    def needs_fit(self) -> bool:
        """Whether any pass to come needs the projection or the labeler of its layer."""
        return any(self._on_fit(one) for one in self.remaining)

    def needs_fit_next(self) -> bool:
        """Whether the next pass does."""
        return bool(self.remaining) and self._on_fit(self.remaining[0])

    def _on_fit(self, one: Pass) -> bool:
        by_features = isinstance(self.measure.labeler, FeatureLabeler)
        return bool(one.fields & FITTED_FIELDS) or ("labels" in one.fields and by_features)

    def update(self, batch: FeatureBatch) -> None:
        """See a batch of the current pass: of one that reads labels of targets, the vectors that have a label."""
        if self.failure is None:
            with _Guard(self):
                labeler = self.measure.labeler
                by_targets = isinstance(labeler, TargetLabeler) and "labels" in self.remaining[0].fields
                given = batch.labeled(labeler) if labeler is not None and by_targets else batch
                self._seen += len(batch)
                self._labeled += len(given)
                if len(given) or not len(batch):
                    with given.read_by(self.measure, self.remaining[0]):
                        self.measure.update(given)

    def end_pass(self) -> None:
        """Go on to the next pass."""
        self.remaining.pop(0)
        if self._seen and not self._labeled and self.failure is None:
            self.failure = "undefined: no vector of the sample has a label"
        self._seen = self._labeled = 0
        if self.failure is None:
            with _Guard(self):
                self.measure.end_pass()

    def outcomes(self) -> dict[str, Outcome]:
        """The measure's variables, with values or with the reason why not."""
        names = [variable.name for variable in self.measure.variables]
        made: dict[str, Outcome] = {}
        if self.failure is None:
            with _Guard(self):
                by_name = by_variable("compute", self.measure.compute(), self.measure.variables)
                made = {name: noted(outcome(by_name[name]), self._note) for name in names}
        if self.failure is None:
            return made
        return {name: Outcome(float("nan"), self.failure) for name in names}


class _Guard:
    """Turns an exception of a measure into its status: the other measures go on."""

    def __init__(self, running: Running) -> None:
        self._running = running

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        if not isinstance(error, Exception):
            return False
        self._running.failure = status_of(error, f"{self._running.measure} on layer {self._running.layer.name}")
        return True
