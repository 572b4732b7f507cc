"""A budget instead of ranks, as a user gives it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from afm_dist.checkpoint.config import load_config
from afm_dist.checkpoint.files import size_on_disk
from tests.jobs.commands import succeed
from tests.jobs.conftest import Compressed, compress_command

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]


def budgeted(compressed: Compressed, output: Path, *options: str) -> str:
    """Run a compression whose ranks follow from a budget; what it printed."""
    command = compress_command(compressed.data, compressed.trained, str(output))
    del command[command.index("--mlp-rank") :]
    return succeed(*command, "--methods", "afm", "--finetune-epochs", "1", *options)


def test_the_checkpoint_fits_and_the_report_says_what_was_tried(
    compressed: Compressed, tmp_path: Path
) -> None:
    output = tmp_path / "half"

    printed = budgeted(compressed, output, "--target-ratio", "2")

    before, after = (size_on_disk(f"{run}/checkpoint") for run in (compressed.trained, output))
    assert after <= before / 2
    tried = json.loads((output / "ranks" / "ranks.json").read_text())
    ranks = tried["ranks"]["embedding"]
    assert len(set(ranks.values())) > 1
    assert {entry.name: entry.config.ranks for entry in load_config(f"{output}/checkpoint").plan.entries}[
        "embedding"
    ] == ranks
    report = json.loads((output / "report" / "report.json").read_text())
    layers = {layer["name"]: layer["rank"] for layer in report["layers"]}
    assert {field: layers[f"embedding[{field}]"] for field in ranks} == ranks
    (note,) = [note for note in report["notes"] if note.startswith("Ranks for a budget of")]
    assert all(one["name"] in note for one in tried["tried"])
    assert any(note.startswith("The fields have ranks of their own") for note in report["notes"])
    assert "embedding by field (" in " ".join(printed.split())


def test_layers_that_a_budget_leaves_as_they_are_are_in_no_plan(
    compressed: Compressed, tmp_path: Path
) -> None:
    before = size_on_disk(f"{compressed.trained}/checkpoint")
    output = tmp_path / "nearly"

    budgeted(compressed, output, "--target-bytes", str(before - 1), "--field-ranks", "uniform")

    ranks = json.loads((output / "ranks" / "ranks.json").read_text())["ranks"]
    left = [name for name, rank in ranks.items() if rank is None]
    planned = [entry.name for entry in load_config(f"{output}/checkpoint").plan.entries]
    assert left
    assert sorted([*planned, *left]) == sorted(ranks)
    report = json.loads((output / "report" / "report.json").read_text())
    assert {layer["name"].partition("[")[0] for layer in report["layers"]} == {*planned}
