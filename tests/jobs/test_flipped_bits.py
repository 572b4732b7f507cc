"""Kills -9, and bits that flip before the job is started again: refused by name, redone, or the same bits.

Seeded; 25 in all. Long, so marked slow.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from afm_dist.dataset.manifest import Manifest
from tests.jobs.commands import ROOT, run, succeed
from tests.jobs.conftest import Compressed, compress_command, train_command, write_clicks
from tests.processes import descendants

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

# Logs, which nothing is resumed from.
LOGS = ("events.jsonl", "environment.json", "progress.json")
FLIPPED_FILES = 3

IN_THIS_PROCESS = """
import os, signal, sys
import ray
from afm_dist.runtime.resources import ONE_CPU
from data_prep import work
from data_prep.scoring import pipeline
from data_prep.sources import tabular
from tests.data_prep.in_this_process import in_this_process

tabular.TabularSource.__init__.__kwdefaults__["block_bytes"] = 20_000
job, log, where, output, left = sys.argv[1:]
left = int(left)
with in_this_process() as patch:
    patch.setattr(ray, "get", lambda references: references)
    patch.setattr(pipeline, "ensure_ray", lambda **_: None)
    patch.setattr(pipeline, "task_resources", lambda _: ONE_CPU)
    tasks = work._run_task

    class Killing:
        def options(self, **_):
            return self

        def remote(self, *arguments):
            global left
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1
            return tasks.remote(*arguments)

    patch.setattr(work, "_run_task", Killing())

    def main(_):
        if job == "prepare":
            from data_prep.pipeline import prepare
            from data_prep.protocol import Protocol
            from data_prep.sources.tabular_columns import ColumnOptions

            source = tabular.TabularSource([log], ColumnOptions(label="click"))
            prepare(source, output, Protocol(rows_per_shard=1000))
        else:
            from afm_dist.checkpoint import preprocessing
            from afm_dist.checkpoint import from_pretrained
            from data_prep.scoring.source import open_source

            manifest = preprocessing.load(where)
            source = open_source([log], manifest, keep=("user",))
            pipeline.predict(from_pretrained(where), manifest, source, output)

    from afm_dist.errors import AfmError

    try:
        main(None)
    except AfmError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
"""


def flip_bits(folders: list[Path], generator: random.Random) -> list[Path]:
    """Flip a bit in some of the files below some folders, keeping their times of change; which files."""
    files = [
        path
        for folder in folders
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.stat().st_size and path.name not in LOGS and path.suffix != ".tmp"
    ]
    chosen = generator.sample(files, min(FLIPPED_FILES, len(files)))
    for path in chosen:
        status, content = path.stat(), bytearray(path.read_bytes())
        content[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
        path.write_bytes(content)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    return chosen


def refused(result: subprocess.CompletedProcess[str], flipped: list[Path], output: Path) -> bool:
    """Whether a job that was started again refused what was altered: in one line, by name."""
    if result.returncode == 0:
        return False
    errors = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert "Traceback" not in result.stderr, result.stderr
    assert result.returncode in (1, 2), result.stderr
    assert len(errors) == 1, result.stderr
    named = [str(path) for path in flipped] + [str(path.parent) for path in flipped] + [str(output)]
    assert any(name in errors[0] for name in named), (errors[0], flipped)
    return True


def start(command: list[str], folder: Path, when: Callable[[], bool]) -> bool:
    """Run a job and kill it, and all it started, as soon as ``when``; False: it ended before."""
    with (folder / "log").open("wb") as log:
        job = subprocess.Popen(
            [sys.executable, *command], cwd=ROOT, stdout=log, stderr=log, start_new_session=True
        )
        while job.poll() is None:
            if when():
                below = descendants(job.pid)
                for process in (job.pid, *below):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(process, signal.SIGKILL)
                job.wait()
                return True
            time.sleep(0.02)
    return False


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("log") / "clicks.csv"
    write_clicks(path)
    return path


def in_this_process(
    job: str, log: Path, where: str, output: Path, kill_after: int
) -> subprocess.CompletedProcess[str]:
    arguments = (job, str(log), where, str(output), str(kill_after))
    return run("-c", IN_THIS_PROCESS, *arguments, PYTHONPATH=str(ROOT))


@pytest.fixture(scope="module")
def prepared(log: Path, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    whole = tmp_path_factory.mktemp("prepared") / "whole"
    made = in_this_process("prepare", log, "", whole, -1)
    assert made.returncode == 0, made.stderr
    return Manifest.load(str(whole))


@pytest.mark.parametrize("seed", range(10))
def test_a_preparation(log: Path, prepared: Manifest, tmp_path: Path, seed: int) -> None:
    generator = random.Random(seed)
    output = tmp_path / "data"
    killed = in_this_process("prepare", log, "", output, generator.randrange(8, 20))
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    flipped = flip_bits([output], generator)

    again = in_this_process("prepare", log, "", output, -1)

    if not refused(again, flipped, output):
        made = Manifest.load(str(output))
        assert made.fingerprint() == prepared.fingerprint()
        for file in [*made.vocabulary.values(), *(shard for each in made.splits.values() for shard in each)]:
            made.check(file)


@pytest.mark.parametrize("seed", range(5))
def test_a_prediction(compressed: Compressed, log: Path, tmp_path: Path, seed: int) -> None:
    generator = random.Random(seed)
    checkpoint = f"{compressed.output}/checkpoint"
    whole, output = tmp_path / "whole.parquet", tmp_path / "scores.parquet"
    assert in_this_process("predict", log, checkpoint, whole, -1).returncode == 0
    killed = in_this_process("predict", log, checkpoint, output, generator.randrange(9, 18))
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    flipped = flip_bits([Path(f"{output}.work")], generator)

    again = in_this_process("predict", log, checkpoint, output, -1)

    if not refused(again, flipped, output):
        assert output.read_bytes() == whole.read_bytes()


def same_checkpoint(output: Path, whole: Path) -> None:
    for name in ("config.json", "model.safetensors", "SHA256SUMS"):
        assert (output / "checkpoint" / name).read_bytes() == (whole / "checkpoint" / name).read_bytes()


def resumes(command: list[str], tmp_path: Path, seed: int, moment: str, whole: Path) -> bool:
    """Kill a job when a file appears, flip bits, and start it again until it ends; whether it was refused."""
    output = tmp_path / "run"
    if not start(command, tmp_path, lambda: (output / moment).exists()):
        pytest.fail((tmp_path / "log").read_text())
    flipped = flip_bits([output], random.Random(seed))
    again = run(*command, timeout=600)
    if refused(again, flipped, output):
        return True
    same_checkpoint(output, whole)
    return False


@pytest.mark.parametrize(
    ("seed", "moment"), [(0, "train/registered.json"), (1, "train/history.json"), (2, "evaluate/_STARTED")]
)
def test_a_training(compressed: Compressed, tmp_path: Path, seed: int, moment: str) -> None:
    command = train_command(compressed.data, str(tmp_path / "run"))

    resumes(command, tmp_path, seed, moment, Path(compressed.trained))


@pytest.mark.parametrize(
    ("seed", "moment"),
    [
        (0, "statistics-mlp/_SUCCESS"),
        (1, "finetune-mlp/registered.json"),
        (2, "rewrite-embedding/_STARTED"),
        (3, "finetune-embedding/control/history.json"),
        (4, "evaluate/_STARTED"),
    ],
)
def test_a_compression(compressed: Compressed, tmp_path: Path, seed: int, moment: str) -> None:
    command = compress_command(compressed.data, compressed.trained, str(tmp_path / "run"))

    if not resumes(command, tmp_path, seed, moment, Path(compressed.output)):
        reports = [
            json.loads(Path(each, "report", "report.json").read_text())
            for each in (compressed.output, tmp_path / "run")
        ]
        before, after = (
            [(row["name"], row["auc"], row["log_loss"]) for row in each["rows"]] for each in reports
        )
        assert after == before


@pytest.mark.parametrize(
    ("seed", "moment"), [(0, "statistics-embedding/_SUCCESS"), (1, "checkpoint/_STARTED")]
)
def test_tables_block_by_block(compressed: Compressed, tmp_path: Path, seed: int, moment: str) -> None:
    def command(name: str) -> list[str]:
        return [
            *("jobs/compress_tables.py", "--data", compressed.data, "--embedding-dim", "2"),
            *("--checkpoint", f"{compressed.trained}/checkpoint", "--output", str(tmp_path / name)),
        ]

    succeed(*command("whole"))

    resumes(command("run"), tmp_path, seed, moment, tmp_path / "whole")
