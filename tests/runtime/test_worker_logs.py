from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from afm_dist.runtime.worker_logs import crash_in


def write_log(folder: Path, name: str, text: str, *, seconds_ago: float = 0) -> None:
    path = folder / f"worker-{name}.err"
    path.write_text(text)
    changed = path.stat().st_mtime - seconds_ago
    os.utime(path, (changed, changed))


def test_a_crash_is_named_with_its_place(tmp_path: Path) -> None:
    script = "import faulthandler, os\nfaulthandler.enable()\ndef parse():\n    os.abort()\nparse()\n"
    crashed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    write_log(tmp_path, "aa", ":job_id:01000000\n" + crashed.stderr)
    assert crash_in(tmp_path) == "Fatal Python error: Aborted in parse (<string>:4)"


def test_a_worker_that_was_killed_left_nothing(tmp_path: Path) -> None:
    write_log(tmp_path, "aa", ":job_id:01000000\n:task_name:statistics\n")
    assert crash_in(tmp_path) is None
    assert crash_in(tmp_path / "absent") is None


def test_an_old_crash_is_not_taken_for_a_new_death(tmp_path: Path) -> None:
    write_log(tmp_path, "aa", "Fatal Python error: Segmentation fault\n", seconds_ago=3600)
    write_log(tmp_path, "bb", ":job_id:01000000\n")
    assert crash_in(tmp_path) is None
