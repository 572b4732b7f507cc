"""Several seeds, run as a user runs them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.jobs.commands import succeed
from tests.jobs.conftest import Compressed, compress_command

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]


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
