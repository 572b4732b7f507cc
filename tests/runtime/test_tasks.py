from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import ray

from afm_dist.errors import DataError, StageError
from afm_dist.runtime import tasks
from afm_dist.runtime.tasks import RetryError, run_tasks
from afm_dist.runtime.watchdog import Watchdog

pytestmark = pytest.mark.ray

STORE_IS_BUSY = "AWS Error SLOW_DOWN during PutObject operation"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "PAUSE_S", 0.01)


class Run:
    """Runs a function of (item, number of the attempt) for each item; notes attempts and events."""

    def __init__(self, folder: Path, function: Callable[[int, int], Any]) -> None:
        self.folder = folder
        self.results: dict[int, Any] = {}
        self.events: list[dict[str, Any]] = []
        attempts = str(folder)

        def attempt(item: int) -> Any:
            number = len(list(Path(attempts).glob(f"{item}-*"))) + 1
            Path(attempts, f"{item}-{number}").touch()
            return function(item, number)

        self._task = ray.remote(max_retries=0)(attempt)

    def __call__(
        self, items: int, finished: Callable[[int, Any], None] | None = None, **options: Any
    ) -> None:
        run_tasks(
            self.submit,
            range(items),
            finished=finished or self.results.__setitem__,
            what="trial",
            name_of=lambda item: f"item {item}",
            emit=lambda what, /, **details: self.events.append({"event": what, **details}),
        )

    def submit(self, item: int) -> Any:
        return self._task.options(num_cpus=0.5).remote(item)

    def attempts(self, item: int) -> int:
        return len(list(self.folder.glob(f"{item}-*")))


def test_a_killed_worker_is_told_and_its_item_done_again(
    local_ray: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def killed_once(item: int, attempt: int) -> int:
        if item == 1 and attempt == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return item * 10

    run = Run(tmp_path, killed_once)
    run(3)

    assert run.results == {0: 0, 1: 10, 2: 20}
    assert run.events == [
        {"event": "task lost", "what": "trial", "task": "item 1", "attempt": 1, "reason": "the worker died"}
    ]
    assert "trial: doing item 1 again: the worker died" in capsys.readouterr().err


def test_a_task_that_kills_every_worker_ends_in_a_clear_error(
    local_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, "MAX_ATTEMPTS", 2)
    run = Run(tmp_path, lambda item, attempt: os.kill(os.getpid(), signal.SIGKILL))

    with pytest.raises(StageError, match="trial: item 0 failed 2 times, at last: the worker died; mend"):
        run(1)

    assert run.attempts(0) == 2


def test_a_passing_fault_of_the_storage_is_waited_out(local_ray: None, tmp_path: Path) -> None:
    def slow_down(item: int, attempt: int) -> int:
        if attempt < 4:
            raise OSError(STORE_IS_BUSY) if attempt % 2 else OSError(errno.ESTALE, "Stale file handle")
        return attempt

    run = Run(tmp_path, slow_down)
    run(1)

    assert run.results == {0: 4}
    assert [event["attempt"] for event in run.events] == [1, 2, 3]
    assert run.events[0]["reason"] == f"the storage failed ({STORE_IS_BUSY})"


def test_a_storage_that_keeps_failing_ends_in_a_clear_error(local_ray: None, tmp_path: Path) -> None:
    def slow_down(item: int, attempt: int) -> None:
        raise OSError(STORE_IS_BUSY)

    with pytest.raises(StageError, match="item 0 failed 6 times, at last: the storage failed"):
        Run(tmp_path, slow_down)(1)


@pytest.mark.parametrize(
    "fault",
    [DataError("shard 3 is truncated"), OSError(errno.ENOSPC, "No space left on device", "/data/x")],
)
def test_what_another_attempt_cannot_mend_is_raised_at_once(
    local_ray: None, tmp_path: Path, fault: Exception
) -> None:
    def faulty(item: int, attempt: int) -> None:
        raise fault

    run = Run(tmp_path, faulty)
    with pytest.raises(type(fault)) as caught:
        run(1)

    assert str(caught.value) == str(fault)
    assert caught.value.__cause__ is None
    assert run.attempts(0) == 1


def test_the_driver_may_ask_for_another_attempt(local_ray: None, tmp_path: Path) -> None:
    run = Run(tmp_path, lambda item, attempt: attempt)

    def third_is_right(item: int, attempt: int) -> None:
        if attempt < 3:
            raise RetryError("not there yet")

    run(2, third_is_right)

    assert (run.attempts(0), run.attempts(1)) == (3, 3)
    assert {event["reason"] for event in run.events} == {"not there yet"}


def test_the_number_in_flight_follows_the_cluster(
    local_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, "MIN_IN_FLIGHT", 1)
    submitted: list[int] = []
    ahead: list[int] = []
    run = Run(tmp_path, lambda item, attempt: item)

    def submit(item: int) -> Any:
        submitted.append(item)
        return run.submit(item)

    def finished(item: int, result: int) -> None:
        run.results[item] = result
        ahead.append(len(submitted) - len(run.results))

    run_tasks(submit, range(40), finished=finished, slots=lambda: 1 if len(run.results) < 20 else 4)

    assert len(run.results) == 40
    assert max(ahead[:20]) < 2
    assert 2 <= max(ahead) < 8


def test_after_a_failure_no_task_runs_on(local_ray: None, tmp_path: Path) -> None:
    beats = tmp_path / "beats"
    beats.mkdir()

    def long(item: int, attempt: int) -> None:
        while item > 0:
            (beats / str(item)).write_text(str(time.monotonic_ns()))
            time.sleep(0.01)
        while not list(beats.iterdir()):
            time.sleep(0.01)
        raise DataError("broken")

    run = Run(tmp_path, long)
    with pytest.raises(DataError, match="broken"):
        run(30)

    last = {path: path.read_text() for path in beats.iterdir()}
    time.sleep(0.2)
    assert 0 < len(last) < 29
    assert last == {path: path.read_text() for path in beats.iterdir()}


def test_a_silence_says_what_is_waited_for(
    local_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, "Watchdog", partial(Watchdog, patience_s=0.3))
    monkeypatch.setattr(tasks, "POLL_S", 0.1)
    silent = tmp_path / "silent"

    def slow(item: int, attempt: int) -> None:
        while not silent.exists():
            time.sleep(0.01)

    run = Run(tmp_path, slow)
    events: list[dict[str, Any]] = []

    def heard(what: str, /, **details: Any) -> None:
        events.append({"event": what, **details})
        silent.touch()

    run_tasks(run.submit, [0, 1], finished=lambda *_: None, what="trial", emit=heard)

    assert events[0]["event"] == "no progress"
    assert events[0]["waiting_for"].startswith("2 tasks in flight, 0 waiting; the cluster has ")
    assert " of 2 CPUs" in events[0]["waiting_for"]
