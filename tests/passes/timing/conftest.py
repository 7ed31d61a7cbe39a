"""A clock that tests move by hand."""

from collections.abc import Callable

import pytest


class FakeClock:
    """Time passes only when a run says so; ``used`` is the share of it that this process
    computes."""

    def __init__(self) -> None:
        self.time = 0.0
        self.used = 1.0
        self._processor = 0.0

    def pass_by(self, seconds: float, used: float | None = None) -> None:
        self.time += seconds
        self._processor += seconds * (self.used if used is None else used)

    def seconds(self, run: Callable[[], None]) -> float:
        before = self.time
        run()
        return self.time - before

    def now(self) -> float:
        return self.time

    def processor(self) -> float:
        return self._processor

    def taking(self, seconds: float) -> Callable[[], None]:
        """A run that always takes as long."""
        return lambda: self.pass_by(seconds)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()
