"""What happened in a run: one line of JSON per event, in ``events.jsonl``."""

from __future__ import annotations

import atexit
import errno
import os
import threading
import time
from datetime import UTC, datetime
from typing import Any, Protocol

from afm_dist import storage
from afm_dist.runtime import console

# Between two writings of the log on an object store, where every writing sends the whole file.
INTERVAL_S = 10.0


class Emit(Protocol):
    """Takes note of an event: ``emit("group committed", group=3, rows=1000)``."""

    def __call__(self, what: str, /, **details: Any) -> None:
        """Take note of ``what``, in a few words, with plain JSON values."""


def no_events(what: str, /, **details: Any) -> None:
    """Do nothing with an event: the default outside a run."""


class EventLog:
    """A log that is added to, also by several threads.

    On a local disk every event is written at once. An object store cannot append: there events are
    collected, and the whole file is written again at most once in ``interval_s``, besides when
    ``flush`` is called and when the process ends. Of two drivers that log to the same object at
    once, one may lose its lines.

    The log is never a reason to stop: lines that cannot be written are kept for the next time, with
    one warning.

    Args:
        location: The file; what it holds stays.
        interval_s: See above.
    """

    def __init__(self, location: str, *, interval_s: float = INTERVAL_S) -> None:
        self._location = location
        self._interval_s = interval_s
        self._lock = threading.Lock()
        self._pending: list[str] = []
        self._content: bytes | None = None
        self._tried = float("-inf")
        self._warned = False
        if not storage.is_local(location):
            atexit.register(self.flush)

    def add(self, what: str, /, **details: Any) -> None:
        """Add an event with the time of now.

        Args:
            what: In a few words.
            details: Plain JSON values.
        """
        line = storage.json_line({"time": now(), "event": what, **details})
        with self._lock:
            self._pending.append(line)
            if storage.is_local(self._location) or time.monotonic() - self._tried >= self._interval_s:
                self._write()

    def flush(self) -> None:
        """Write what was not written yet."""
        with self._lock:
            if self._pending:
                self._write()

    def _write(self) -> None:
        self._tried = time.monotonic()
        lines = "".join(f"{line}\n" for line in self._pending).encode()
        try:
            if storage.is_local(self._location):
                _append(self._location, lines)
            else:
                if self._content is None:
                    there = storage.exists(self._location)
                    self._content = storage.read_bytes(self._location) if there else b""
                storage.write_bytes(self._location, self._content + lines)
                self._content += lines
        except OSError as error:
            if not self._warned:
                console.warn(f"{self._location}: cannot be written now ({error}); going on without")
            self._warned = True
        else:
            self._pending.clear()


def _append(location: str, lines: bytes) -> None:
    path = storage.local_path(location)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "not a file", str(path))
    with path.open("ab+", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        if size:
            # A full disk or a killed process may have left half a line.
            file.seek(size - 1)
            if file.read(1) != b"\n":
                lines = b"\n" + lines
        file.write(lines)


def now() -> str:
    """Return the time in UTC, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
