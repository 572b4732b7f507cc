"""Running jobs as a user does: a command, its exit code, what it printed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments: str, timeout: float = 280, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run ``python ARGUMENTS`` in the repository's root."""
    import os

    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "120", **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def succeed(*arguments: str, timeout: float = 280) -> str:
    """Run a job that must succeed; what it printed."""
    result = run(*arguments, timeout=timeout)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def fail(*arguments: str, code: int) -> str:
    """Run a job that must fail with this code and without a traceback; its message."""
    result = run(*arguments)
    assert result.returncode == code, result.stdout + result.stderr
    assert "Traceback" not in result.stderr, result.stderr
    message = result.stderr.strip()
    assert message.startswith("error:"), message
    assert len(message.splitlines()) == 1, message
    return message
