"""What a worker that died left in its log: Ray's exception does not say, and its output is not shown."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import ray

RECENT_S = 30.0
TAIL_BYTES = 1 << 14

_FATAL = re.compile(r"^Fatal Python error: .*$", re.MULTILINE)
_FRAME = re.compile(r'^ +File "(?P<file>[^"]+)", line (?P<line>\d+) in (?P<function>\S+)$', re.MULTILINE)


def crash_report() -> str:
    """Describe how a worker crashed just now, as far as this machine knows, and where to look.

    A worker that was killed (for memory, say) has no last words.
    """
    node: Any = ray._private.worker._global_node
    if node is None:
        return "no Ray is connected"
    folder = Path(node.get_logs_dir_path())
    words = crash_in(folder)
    return f"{words}; see worker-*.err in {folder}" if words else f"see worker-*.err in {folder} on its node"


def crash_in(folder: Path) -> str | None:
    """Find error and place of the latest crash that the interpreter could report; None: there is none."""
    recent = time.time() - RECENT_S
    logs = [(path.stat().st_mtime, path) for path in folder.glob("worker-*.err")]
    for changed, path in sorted(logs, reverse=True):
        if changed < recent:
            return None
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL_BYTES))
            text = file.read().decode(errors="replace")
        if fatal := _FATAL.search(text):
            frame = _FRAME.search(text, fatal.end())
            if frame is None:
                return fatal[0]
            return f"{fatal[0]} in {frame['function']} ({Path(frame['file']).name}:{frame['line']})"
    return None
