"""A sweep, run as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from afm_dist.checkpoint.files import size_on_disk
from afm_dist.checkpoint.pretrained import from_pretrained
from tests.jobs.commands import run_warm, succeed
from tests.jobs.conftest import Compressed

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]


@pytest.mark.slow
def test_a_sweep_fine_tunes_a_model_of_each_size_and_ships_one(
    compressed: Compressed, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    command = [
        "jobs/compress.py",
        *("--data", compressed.data, "--checkpoint", f"{compressed.trained}/checkpoint"),
        *("--output", str(output), "--sweep", "--sweep-ranks", "4,8", "--sweep-dims", "1,2"),
        *("--sweep-ratios", "1.5,2.5"),
    ]

    succeed(*command)

    report = json.loads((output / "report" / "report.json").read_text())
    rows = {(row["name"], row["stage"]): row for row in report["rows"]}
    before = rows["baseline", "trained"]["bytes"]
    chosen = [name for name, stage in rows if stage == "before-finetune"]
    assert chosen
    assert sorted(before / rows[name, "after-finetune"]["bytes"] for name in chosen)[0] >= 1.5
    shipped = report["shipped"]["name"]
    assert size_on_disk(str(output / "checkpoint")) == rows[shipped, "after-finetune"]["bytes"]
    from_pretrained(str(output / "checkpoint"))
    assert "Every rank" in (output / "report" / "report.html").read_text()
    assert "every stage is up to date" in succeed(*command)


def test_a_dry_run_of_a_sweep_starts_nothing(compressed: Compressed, tmp_path: Path) -> None:
    result = run_warm(
        "jobs/compress.py",
        *("--data", compressed.data, "--checkpoint", f"{compressed.trained}/checkpoint"),
        *("--output", str(tmp_path / "run"), "--sweep", "--dry-run"),
    )
    assert result.returncode == 0, result.stderr
    assert "finetune-sweep" in result.stdout
    assert not (tmp_path / "run").exists()
