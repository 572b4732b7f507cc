from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest

from afm_dist import storage
from afm_dist.runs.events import EventLog


def events(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def numbers(path: Path) -> list[int]:
    return [event["number"] for event in events(path)]


@pytest.fixture
def writes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is written to an object store: the local disk stands in for it."""
    written: list[str] = []
    write_bytes = storage.write_bytes

    def counted(location: str, data: bytes) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(storage, "is_local", lambda location: True)
            write_bytes(location, data)
        written.append(location)

    monkeypatch.setattr(storage, "is_local", lambda location: False)
    monkeypatch.setattr(storage, "write_bytes", counted)
    return written


def test_a_log_on_a_local_disk_holds_each_event_at_once(tmp_path: Path) -> None:
    log = EventLog(str(tmp_path / "run" / "events.jsonl"))

    log.add("group committed", group=3, name="ünï")

    (event,) = events(tmp_path / "run" / "events.jsonl")
    assert (event["event"], event["group"], event["name"]) == ("group committed", 3, "ünï")
    assert event["time"] > "2026"


def test_a_log_is_added_to_by_later_runs_also_after_half_a_line(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    EventLog(str(path)).add("first", number=1)
    path.write_bytes(path.read_bytes() + b'{"event": "sec')

    EventLog(str(path)).add("third", number=3)

    first, half, third = path.read_text().splitlines()
    assert half == '{"event": "sec'
    assert [json.loads(line)["number"] for line in (first, third)] == [1, 3]


def test_an_object_store_gets_many_events_in_few_writings(tmp_path: Path, writes: list[str]) -> None:
    location = f"file://{tmp_path}/events.jsonl"
    EventLog(location).add("earlier", number=-1)
    log = EventLog(location)

    for number in range(1000):
        log.add("many", number=number)
    log.flush()
    log.flush()

    assert len(writes) == 3  # the earlier run's, the first event, the flush
    assert numbers(tmp_path / "events.jsonl") == list(range(-1, 1000))


def test_an_object_store_gets_events_now_and_then(tmp_path: Path, writes: list[str]) -> None:
    log = EventLog(f"file://{tmp_path}/events.jsonl", interval_s=0)

    for number in range(3):
        log.add("rare", number=number)

    assert len(writes) == 3
    assert numbers(tmp_path / "events.jsonl") == [0, 1, 2]


def test_a_full_disk_stops_the_log_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log = EventLog(str(tmp_path / "events.jsonl"))

    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("afm_dist.runs.events._append", full)
        log.add("first", number=1)
        log.add("second", number=2)
    log.add("third", number=3)

    assert capsys.readouterr().err.count("No space left on device") == 1
    assert numbers(tmp_path / "events.jsonl") == [1, 2, 3]
