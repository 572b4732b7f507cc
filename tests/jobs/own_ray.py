"""A Ray of a test's own, started by commands as a user starts it: no port and no file of another one's."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.jobs.commands import ROOT

RAY = Path(sys.executable).with_name("ray")
START_TIMEOUT_S = 180
SUBMIT_TIMEOUT_S = 550


@dataclass
class OwnRay:
    """Nodes on this machine that know each other by a token.

    Attributes:
        folder: Home of the token, of sessions and of logs.
        environment: Of every command.
        gcs: Port that nodes connect to.
        dashboard: Port that jobs are submitted to.
        nodes: Processes of ``ray start --block``.
    """

    folder: Path
    environment: dict[str, str]
    gcs: int
    dashboard: int
    nodes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def address(self) -> str:
        """Where jobs are submitted."""
        return f"http://127.0.0.1:{self.dashboard}"

    def start(self, command: Sequence[str], *, cpus: int) -> None:
        """Start a node by a user's command, of which the ports and folders are made this Ray's own."""
        own = ["--block", "--num-cpus", str(cpus), "--node-ip-address", "127.0.0.1"]
        own += ["--object-store-memory", "200000000", "--disable-usage-stats"]
        own += ["--dashboard-agent-listen-port", "0"]
        own += ["--temp-dir", str(self.folder / f"node{len(self.nodes)}")]
        if "--head" in command:
            own += ["--port", str(self.gcs), "--dashboard-port", str(self.dashboard)]
            own += ["--ray-client-server-port", str(*free_ports(1))]
        else:
            own += ["--address", f"127.0.0.1:{self.gcs}"]
        log = self.folder / f"node{len(self.nodes)}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [str(RAY), *command[1:], *own],
                env=self.environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.nodes.append(process)
        deadline = time.monotonic() + START_TIMEOUT_S
        while b"Ray runtime started" not in log.read_bytes() or not _listening(self.dashboard):
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"the node did not start:\n{log.read_text()}")
            time.sleep(0.1)

    def submit(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """``ray job submit``, from the root of the repository."""
        command = [
            str(RAY),
            "job",
            "submit",
            "--address",
            self.address,
            "--working-dir",
            ".",
            "--",
            *arguments,
        ]
        return subprocess.run(
            command,
            cwd=ROOT,
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            timeout=SUBMIT_TIMEOUT_S,
            check=False,
        )

    def run(self, command: Sequence[str]) -> None:
        """Run another ``ray`` command that must succeed."""
        subprocess.run([str(RAY), *command[1:]], env=self.environment, check=True, capture_output=True)

    def stop(self) -> None:
        """End these nodes only: ``ray stop`` would end every Ray of this machine."""
        for process in reversed(self.nodes):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@contextmanager
def own_ray() -> Iterator[OwnRay]:
    """A Ray without nodes and without a token yet; its nodes end with the block."""
    # A short folder: Unix sockets below it may have 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="afm-"))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {
        "HOME": str(folder),
        "RAY_AUTH_MODE": "token",
        "RAY_raylet_start_wait_time_s": str(START_TIMEOUT_S),
        # "python" in a submitted command is the one on the path of `ray start`.
        "PATH": f"{RAY.parent}{os.pathsep}{os.environ['PATH']}",
    }
    gcs, dashboard = free_ports(2)
    ray = OwnRay(folder, environment, gcs, dashboard)
    try:
        yield ray
    finally:
        ray.stop()
        shutil.rmtree(folder, ignore_errors=True)


def _listening(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def free_ports(count: int) -> list[int]:
    """Ports of this machine that nobody listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
