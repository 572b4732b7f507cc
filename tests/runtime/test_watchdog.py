from __future__ import annotations

from typing import Any

import pytest

from afm_dist.runtime.watchdog import Watchdog


class Clock:
    def __init__(self) -> None:
        self.time = 0.0

    def __call__(self) -> float:
        return self.time


class Watched:
    """A watch whose clock is wound by the test, and what it said."""

    def __init__(self, patience_s: float) -> None:
        self.clock = Clock()
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.watch = Watchdog(
            "statistics",
            waiting_for=lambda: "3 tasks in flight",
            emit=lambda what, /, **details: self.events.append((what, details)),
            patience_s=patience_s,
            clock=self.clock,
        )

    def silent_until(self, end: int) -> list[int]:
        """The seconds of silence that were spoken of."""
        before = len(self.events)
        while self.clock.time < end:
            self.clock.time += 1
            self.watch.check()
        return [details["seconds"] for _, details in self.events[before:]]


def test_silence_is_told_with_what_is_waited_for(capsys: pytest.CaptureFixture[str]) -> None:
    watched = Watched(patience_s=60)

    assert watched.silent_until(59) == []
    assert watched.silent_until(60) == [60]

    message = "statistics: no progress for 60 s; 3 tasks in flight"
    assert message in capsys.readouterr().err
    assert watched.events == [
        ("no progress", {"what": "statistics", "seconds": 60, "waiting_for": "3 tasks in flight"})
    ]


def test_a_long_silence_is_told_each_time_it_has_doubled() -> None:
    assert Watched(patience_s=60).silent_until(500) == [60, 120, 240, 480]


def test_progress_ends_a_silence() -> None:
    watched = Watched(patience_s=60)
    watched.silent_until(20)
    watched.watch.progressed()

    assert watched.silent_until(79) == []
    assert watched.silent_until(80) == [60]


def test_slow_tasks_make_patient() -> None:
    watched = Watched(patience_s=60)
    watched.silent_until(100)
    watched.watch.progressed()

    assert watched.silent_until(299) == []
    assert watched.silent_until(300) == [200]
