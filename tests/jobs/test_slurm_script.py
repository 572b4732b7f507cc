"""``jobs/slurm.sbatch`` run as Slurm would run it on one node, with stand-ins for ``srun`` and ``scontrol``.

Where Ray takes part, its ``symmetric-run`` and ``start`` are the real ones; only ``ray stop``, which would
end every Ray of this machine, is replaced by one that ends that of the test.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.jobs.commands import ROOT
from tests.jobs.conftest import Compressed
from tests.jobs.own_ray import RAY, free_ports

# What the stand-ins were called with is kept in this file.
SRUN = """#!/bin/bash
echo "srun $*" >>"$TOOLS/calls"
while [[ $1 == --* ]]; do shift; done
exec "$@"
"""
SCONTROL = """#!/bin/bash
echo "scontrol $*" >>"$TOOLS/calls"
"""
RAY_FOR_THE_COMMAND_ALONE = """#!/bin/bash
echo "token $(stat -c %a "$RAY_AUTH_TOKEN_PATH") $(wc -c <"$RAY_AUTH_TOKEN_PATH")" >>"$TOOLS/calls"
while [[ $1 != -- ]]; do shift; done
shift
exec "$@"
"""
RAY_WITHOUT_STOP = """#!/usr/bin/env python
import os, sys
from ray.scripts import scripts, symmetric_run  # before psutil, which Ray brings along
import psutil

if sys.argv[1] == "start":
    own = ["--num-cpus", "1", "--include-dashboard=false", "--object-store-memory", "200000000"]
    own += ["--dashboard-agent-listen-port", "0", "--ray-client-server-port", os.environ["CLIENT_PORT"]]
    sys.argv += own
    sys.exit(1 if os.environ.get("RAY_START_FAILS") else scripts.main())
if sys.argv[1] == "stop":
    for process in psutil.process_iter():
        if any(f"/ray-{os.environ['SLURM_JOB_ID']}/" in word for word in process.cmdline()):
            process.kill()
    sys.exit()
symmetric_run.check_ray_already_started = lambda: False  # it would see others' Rays
symmetric_run.symmetric_run(sys.argv[2:])
"""


@dataclass(frozen=True)
class Allocation:
    """A folder like a clone, with stand-ins for Slurm, and what Slurm tells a batch script.

    Attributes:
        clone: The folder.
        environment: Of the script.
    """

    clone: Path
    environment: dict[str, str]

    @property
    def ray_logs(self) -> Path:
        """Where the nodes of this job keep Ray's files."""
        return Path(f"/tmp/ray-{self.environment['SLURM_JOB_ID']}")

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        """Start the batch script."""
        return subprocess.Popen(
            ["bash", str(ROOT / "jobs" / "slurm.sbatch"), *arguments],
            cwd=self.clone,
            env={**self.environment, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run the batch script to its end."""
        with self.start(*arguments, **environment) as process:
            output, errors = process.communicate(timeout=280)
        return subprocess.CompletedProcess(arguments, process.returncode, output, errors)

    def calls(self) -> list[str]:
        """What the stand-ins were called with."""
        file = self.clone / "tools" / "calls"
        return file.read_text().splitlines() if file.exists() else []


def make_allocation(clone: Path, ray: str) -> Allocation:
    tools = clone / "tools"
    tools.mkdir()
    for name, text in {"srun": SRUN, "scontrol": SCONTROL, "ray": ray}.items():
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    (clone / ".venv" / "bin").mkdir(parents=True)
    (clone / ".venv" / "bin" / "activate").write_text(f'PATH="{tools}:{RAY.parent}:$PATH"\n')
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {
        "SLURM_JOB_ID": str(7_770_000 + free_port(20_000, 30_000) - 20_000),
        "SLURM_JOB_NUM_NODES": "1",
        "HEAD_IP": "127.0.0.1",
        "TOOLS": str(tools),
        "CLIENT_PORT": str(*free_ports(1)),
    }
    return Allocation(clone, environment)


def free_port(first: int, end: int) -> int:
    """A port in a range that nobody listens on."""
    for port in random.sample(range(first, end), 100):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no free port")


@pytest.fixture
def allocation(tmp_path: Path) -> Allocation:
    """Whose Ray runs the command, and nothing else."""
    return make_allocation(tmp_path, RAY_FOR_THE_COMMAND_ALONE)


@pytest.fixture
def allocation_with_ray(tmp_path: Path) -> Allocation:
    """Whose Ray is the real one, but for the command that would stop all."""
    return make_allocation(tmp_path, RAY_WITHOUT_STOP)


@pytest.mark.ray
def test_a_job_runs_on_the_ray_of_the_allocation_and_leaves_only_its_results(
    allocation_with_ray: Allocation, compressed: Compressed
) -> None:
    checkpoint = f"{compressed.output}/checkpoint"
    result = allocation_with_ray.run(
        str(ROOT / "jobs" / "evaluate.py"), "--data", compressed.data, "--checkpoint", checkpoint
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "AUC " in result.stdout
    assert "starting a local Ray" not in result.stdout
    assert result.stdout.splitlines()[-1] == "slurm.sbatch: done"
    assert {path.name for path in allocation_with_ray.clone.iterdir()} == {".venv", "tools"}
    assert not allocation_with_ray.ray_logs.exists()


def test_a_ray_that_did_not_start_is_a_failure_though_symmetric_run_ends_with_0(
    allocation_with_ray: Allocation,
) -> None:
    result = allocation_with_ray.run(str(ROOT / "jobs" / "evaluate.py"), "--help", RAY_START_FAILS="yes")
    assert "Failed to start Ray" in result.stderr
    assert "the job failed, or Ray did not start (exit code 1, srun's 0)" in result.stderr
    assert result.returncode == 1
    assert "slurm.sbatch: done" not in result.stdout


def test_the_exit_code_of_a_failed_job_is_that_of_the_script(allocation: Allocation) -> None:
    result = allocation.run(str(ROOT / "jobs" / "compress.py"), "--data", "clicks")
    assert "--data needs --output" in result.stderr
    assert "the job failed, or Ray did not start (exit code 2, srun's 2)" in result.stderr
    assert result.returncode == 2


def test_a_job_that_succeeds_makes_the_script_succeed(allocation: Allocation) -> None:
    (allocation.clone / "job.py").write_text("import sys; print(sys.argv[1:])")
    result = allocation.run("job.py", "--input", "day_*.gz", "with space")
    assert result.returncode == 0, result.stderr
    assert "['--input', 'day_*.gz', 'with space']" in result.stdout


def test_the_token_is_long_and_nobody_elses(allocation: Allocation) -> None:
    (allocation.clone / "job.py").touch()
    allocation.run("job.py")
    assert "token 600 65" in allocation.calls()


@pytest.mark.parametrize(("restarts", "queued"), [("19", True), ("20", False)])
def test_near_the_time_limit_the_job_is_queued_again_but_not_forever(
    allocation: Allocation, restarts: str, queued: bool
) -> None:
    (allocation.clone / "job.py").write_text("import time; print('running', flush=True); time.sleep(1)")
    with allocation.start("job.py", SLURM_RESTART_COUNT=restarts) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "running\n"
        process.send_signal(signal.SIGUSR1)
        output, errors = process.communicate(timeout=60)
    requeued = [call for call in allocation.calls() if call.startswith("scontrol requeue")]
    assert requeued == ([f"scontrol requeue {allocation.environment['SLURM_JOB_ID']}"] if queued else [])
    assert ("the time limit again" in errors) != queued
    assert output.endswith("slurm.sbatch: done\n")  # it did not matter: the job ended in time


def test_without_a_job_it_says_how_to_call_it(allocation: Allocation) -> None:
    result = allocation.run()
    assert result.returncode == 2
    assert "usage: sbatch jobs/slurm.sbatch jobs/compress.py OPTIONS" in result.stderr
    assert allocation.calls() == []
