"""Killed workers and drivers: the same result in the end. Long, so marked slow."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.jobs.commands import ROOT, succeed
from tests.jobs.conftest import Compressed, compress_command
from tests.processes import descendants

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]


def weights(output: Path | str) -> bytes:
    return Path(output, "checkpoint", "model.safetensors").read_bytes()


def run_and_kill(command: list[str], folder: Path, when: Callable[[int], list[int]]) -> int:
    """Run a job, kill -9 the processes that ``when(job)`` names as soon as it names any; its exit code."""
    killed = False
    with (folder / "log").open("wb") as log:
        job = subprocess.Popen(
            [sys.executable, *command], cwd=ROOT, stdout=log, stderr=log, start_new_session=True
        )
        while job.poll() is None:
            for process in [] if killed else when(job.pid):
                os.kill(process, signal.SIGKILL)
                killed = True
            time.sleep(0.05)
    assert killed, (folder / "log").read_text()
    return job.returncode


def test_training_worker_killed_after_a_checkpoint_gives_the_undisturbed_weights(
    compressed: Compressed, tmp_path: Path
) -> None:
    output = tmp_path / "run"

    def after_the_first_checkpoint(job: int) -> list[int]:
        if not (output / "finetune-mlp" / "registered.json").exists():
            return []
        return [process for process, title in descendants(job).items() if "ray::RayTrainWorker" in title]

    code = run_and_kill(
        compress_command(compressed.data, compressed.trained, str(output)),
        tmp_path,
        after_the_first_checkpoint,
    )
    assert code == 0, (tmp_path / "log").read_text()
    assert weights(output) == weights(compressed.output)


@pytest.mark.parametrize("stage", ["statistics-mlp", "finetune-mlp", "rewrite-embedding", "evaluate"])
def test_driver_killed_in_a_stage_goes_on_to_the_undisturbed_weights(
    compressed: Compressed, tmp_path: Path, stage: str
) -> None:
    output = tmp_path / "run"
    command = compress_command(compressed.data, compressed.trained, str(output))

    def driver_in_the_stage(job: int) -> list[int]:
        return [job] if (output / stage / "_STARTED").exists() else []

    assert run_and_kill(command, tmp_path, driver_in_the_stage) == -signal.SIGKILL
    printed = succeed(*command)
    assert f"[{stage}]" in printed
    assert weights(output) == weights(compressed.output)
    assert not list(output.rglob("*.tmp"))
