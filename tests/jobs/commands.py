"""Running jobs as a user does: a command, its exit code, what it printed."""

from __future__ import annotations

import atexit
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from tests.forks import fork_server

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments: str, timeout: float = 280, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run ``python ARGUMENTS`` in the repository's root."""
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


def run_warm(*arguments: str, timeout: float = 280, **environment: str) -> subprocess.CompletedProcess[str]:
    """As ``run``, in a process that has already imported what takes seconds."""
    environment = {**os.environ, "COLUMNS": "120", **environment}
    with tempfile.TemporaryDirectory() as folder:
        process = fork_server().Process(target=_run_job, args=(arguments, environment, folder), daemon=True)
        process.start()
        process.join(timeout)
        if process.is_alive():
            process.kill()
            pytest.fail(f"{' '.join(arguments)}: still running after {timeout} s")
        code = process.exitcode
        assert code is not None
        printed = [Path(folder, name).read_text(encoding="utf-8") for name in ("stdout", "stderr")]
    return subprocess.CompletedProcess(arguments, code, *printed)


def _run_job(arguments: Sequence[str], environment: Mapping[str, str], folder: str) -> None:
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(Path(folder, name), os.O_WRONLY | os.O_CREAT), number)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(ROOT)
    sys.argv = list(arguments)
    try:
        runpy.run_path(arguments[0], run_name="__main__")
    finally:
        # A process of multiprocessing ends without them; one of them ends Ray.
        atexit._run_exitfuncs()


def fail(*arguments: str, code: int) -> str:
    """Run a job that must fail with this code and without a traceback; its message."""
    result = run_warm(*arguments)
    assert result.returncode == code, result.stdout + result.stderr
    assert "Traceback" not in result.stderr, result.stderr
    message = result.stderr.strip()
    assert message.startswith("error:"), message
    assert len(message.splitlines()) == 1, message
    return message
