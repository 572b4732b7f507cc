"""Finished runs compared by the command; folders that are none are refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from afm_dist.errors import DataError, OptionError
from afm_dist.report.finished_run import FinishedRun
from jobs.compare import Compare, main
from tests.report.example_runs import example_run, write_json, write_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(example_run("first"), tmp_path / "first")


def test_runs_and_seeds_become_a_page(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seeds = write_run(example_run("seeds", seeds=(0, 1, 2)), tmp_path / "seeds")
    config = Compare(runs=(str(run), str(seeds)), output=str(tmp_path / "compare"))

    main(config)

    printed = capsys.readouterr().out
    assert "what ships" in printed
    assert "The models that ship have one size" in printed
    folder = tmp_path / "compare" / "report"
    content = json.loads((folder / "report.json").read_text())
    assert (content["format_version"], content["kind"]) == (1, "comparison")
    assert [each["seeds"] for each in content["runs"]] == [[0], [0, 1, 2]]
    assert "<svg" in (folder / "report.html").read_text()
    assert "| *first: " in (folder / "report.md").read_text()
    main(config)
    assert "[report] up to date" in capsys.readouterr().out


def test_one_run_is_none_to_compare(run: Path) -> None:
    with pytest.raises(OptionError, match="two or more"):
        main(Compare(runs=(str(run),)))


def test_nothing_is_written_where_a_run_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError):
        main(Compare(runs=(str(run), str(tmp_path / "none")), output=str(tmp_path / "compare")))

    assert not (tmp_path / "compare").exists()


def of_another_job(run: Path) -> None:
    write_json(run / "config.json", {"job": "train"})


def of_a_checkpoint(run: Path) -> None:
    write_json(run / "config.json", {"architecture": "deepfm"})


def without_config(run: Path) -> None:
    (run / "config.json").unlink()


def without_report(run: Path) -> None:
    (run / "report" / "_SUCCESS").unlink()


def stopped_while_fine_tuning(run: Path) -> None:
    without_report(run)
    (run / "finetune-mlp" / "_SUCCESS").rename(run / "finetune-mlp" / "_STARTED")


def begun_again(run: Path) -> None:
    (run / "finetune-mlp" / "_SUCCESS").rename(run / "finetune-mlp" / "_STARTED")


def without_throughput(run: Path) -> None:
    (run / "throughput" / "_SUCCESS").unlink()


def with_other_throughput(run: Path) -> None:
    write_json(run / "throughput" / "_SUCCESS", {"commit": "another"})


def of_another_version(run: Path) -> None:
    report = json.loads((run / "report" / "report.json").read_text())
    write_json(run / "report" / "report.json", {**report, "format_version": 9})


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (of_another_job, "a run of the job train"),
        (of_a_checkpoint, "not a run directory"),
        (without_config, "not a run directory"),
        (without_report, "not finished: its stage 'report' is missing"),
        (stopped_while_fine_tuning, "not finished: its stage 'finetune-mlp' was begun"),
        (begun_again, "not finished: its stage 'finetune-mlp' was begun"),
        (without_throughput, "not finished: its stage 'throughput' is missing"),
        (with_other_throughput, "its report is older than its stage 'throughput'"),
        (of_another_version, "format_version is 9, this version reads 1"),
    ],
)
def test_what_is_no_finished_run_is_named(run: Path, damage: Callable[[Path], None], expected: str) -> None:
    damage(run)

    with pytest.raises(DataError, match=f"^{run}: .*{expected}"):
        FinishedRun.read(str(run))


def test_what_is_left_of_other_options_does_not_matter(tmp_path: Path) -> None:
    run = write_run(example_run("seeds", seeds=(0, 1)), tmp_path / "run")
    write_json(run / "seed-0" / "sweep" / "_STARTED", {})
    write_json(run / "seed-2" / "train" / "_STARTED", {})

    assert list(FinishedRun.read(str(run)).reports) == [0, 1]


def test_an_unfinished_seed_is_named(tmp_path: Path) -> None:
    run = write_run(example_run("seeds", seeds=(0, 1)), tmp_path / "run")
    without_report(run / "seed-1")

    with pytest.raises(DataError, match=rf"^{run}/seed-1: not finished: its stage 'report' is missing"):
        FinishedRun.read(str(run))
