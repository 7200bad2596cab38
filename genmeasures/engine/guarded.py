"""A measure in the course of a run, whose exceptions become its status."""

from __future__ import annotations

from genmeasures.failures import status_of


class Guarded:
    """A measure that is fed: if it fails, the others continue without it.

    Args:
        what: what fails, for the log.
    """

    def __init__(self, what: str) -> None:
        self.failure: str | None = None
        """Status of all values if the measure has failed."""
        self.guard = Guard(self, what)
        """Context in which the measure is called."""

    def fail(self, status: str) -> None:
        """Record a failure; the first one counts."""
        self.failure = self.failure or status


class Guard:
    """Turns an exception of a measure into its status.

    Args:
        guarded: the measure.
        what: what fails, for the log.
    """

    def __init__(self, guarded: Guarded, what: str) -> None:
        self._guarded = guarded
        self._what = what

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        if not isinstance(error, Exception):
            return False
        self._guarded.failure = status_of(error, self._what)
        return True
