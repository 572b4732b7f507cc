"""What a dry run says of scoring raw rows."""

from __future__ import annotations

from pathlib import Path

import pytest

from afm_dist.checkpoint import load_config
from afm_dist.planning.show import show
from afm_dist.resources import AUTOMATIC
from scoring.estimate import plan_of
from tests.scoring.models import Trained


def test_plan_holds_the_sorting_of_vocabularies_and_their_copies(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, source = load_config(trained.checkpoint), trained.source()

    plan = plan_of(config, trained.manifest, source, f"{tmp_path}/scores.parquet", AUTOMATIC)
    elsewhere = plan_of(config, trained.manifest, source, "s3://bucket/scores.parquet", AUTOMATIC)

    assert [estimate.stage for estimate in plan.estimates] == ["vocabulary", "score"]
    assert all(estimate.memory > 0 and estimate.disk > 0 for estimate in plan.estimates)
    assert "mapped from disk" in plan.estimates[1].note
    assert "copied by each worker process to TMPDIR" in elsewhere.estimates[1].note
    show(plan, check=True)
    assert "vocabulary" in capsys.readouterr().out
