"""Several seeds, run as a user runs them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from afm_dist.errors import OptionError
from afm_dist.report import write_report
from jobs import compress as job
from jobs.compress_options import Compress
from tests.jobs.commands import succeed
from tests.jobs.conftest import Compressed, compress_command
from tests.report.example import example_report


def one_seed(config: Compress) -> None:
    """A run's report, without the run."""
    report = example_report()
    for row in report["rows"]:
        row["auc"] += 0.001 * config.seed
    write_report(report, f"{config.output}/report")


def test_the_report_over_the_seeds_needs_the_runs_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "compress", one_seed)
    output = tmp_path / "run"

    job.main(Compress(data="somewhere", output=str(output), seeds="0,2"))

    content = json.loads((output / "report" / "report.json").read_text())
    assert content["seeds"] == [0, 2]
    job.main(Compress(data="somewhere", output=str(output), seeds="0,2"))


def test_a_folder_with_other_files_is_refused_before_the_first_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "compress", lambda config: pytest.fail("a seed was started"))
    (tmp_path / "mine.txt").write_text("")
    with pytest.raises(OptionError, match=r"mine\.txt"):
        job.main(Compress(data="somewhere", output=str(tmp_path), seeds="0,2"))


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_each_seed_is_a_run_and_the_report_is_over_them(compressed: Compressed, tmp_path: Path) -> None:
    output = tmp_path / "run"
    command = [*compress_command(compressed.data, compressed.trained, str(output)), "--seeds", "0,3"]

    printed = succeed(*command)

    assert "within noise" in printed
    content = json.loads((output / "report" / "report.json").read_text())
    assert content["seeds"] == [0, 3]
    for seed in (0, 3):
        own = json.loads((output / f"seed-{seed}" / "report" / "report.json").read_text())
        assert own["config"]["seed"] == seed
        assert len(own["rows"]) == len(content["rows"])
    again = succeed(*command)
    assert "[report] up to date" in again
    assert "[report] running" not in again
