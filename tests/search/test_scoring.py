"""Scores that outlive an interruption, and whose they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from afm_dist import storage
from afm_dist.compression.plan import Plan, PlanEntry
from afm_dist.dataset.manifest import Manifest
from afm_dist.evaluation.score import Quality
from afm_dist.methods.low_rank.config import LowRank
from afm_dist.methods.rounding.config import rounding
from afm_dist.runtime.resources import AUTOMATIC
from afm_dist.search import scoring
from afm_dist.statistics.statistics import Statistics
from tests.stages.bench import HYPER, Bench


class Table:
    """Scores the plans that it is given, with a made-up quality: how many it has scored."""

    def __init__(self, dataset: Manifest, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.bench = Bench("deepfm", dataset, folder, HYPER)
        self.folder = str(folder / "stage")
        self.scored = 0
        monkeypatch.setattr(scoring, "score_split", self._score)

    def _score(self, *args: Any, **options: Any) -> Quality:
        self.scored += 1
        return Quality(1, auc=0.5, log_loss=float(self.scored), calibration=None)

    def open(self) -> Any:
        return scoring.PlanScorer(
            self.bench.run,
            self.bench.dataset,
            self.bench.source,
            self.folder,
            Statistics({}, {}),
            splits=["validation"],
            options=AUTOMATIC,
        ).remembering("ranks", models=2)

    @property
    def remembered(self) -> list[str]:
        return storage.list_names(storage.join(self.folder, scoring.SCORED))


@pytest.fixture
def table(dataset: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Table:
    # A plan is not carried out here: what it would lead to is not looked at.
    monkeypatch.setattr(scoring, "compress_", lambda model, *_: model)
    return Table(dataset, tmp_path, monkeypatch)


def plan(rank: int) -> Plan:
    return Plan(entries=(PlanEntry("mlp.3", LowRank(rank=rank)),)) + rounding("embedding")


def interrupted(table: Table) -> None:
    with pytest.raises(KeyboardInterrupt), table.open() as score:
        score("as-predicted", "afm", plan(2))
        raise KeyboardInterrupt


def test_after_an_interruption_a_score_is_that_of_the_same_plan_or_none(table: Table) -> None:
    interrupted(table)

    with table.open() as score:
        assert score("as-predicted", "afm", plan(2))["validation_log_loss"] == 1
        other = score("as-predicted", "afm", plan(3))

    assert (other["validation_log_loss"], other["ranks"]) == (2, {"mlp.3": 3})
    assert table.scored == 2


def test_scores_are_forgotten_when_all_that_is_made_of_them_is_there(table: Table) -> None:
    interrupted(table)
    assert table.remembered == ["as-predicted.json"]

    with table.open() as score:
        score("as-predicted", "afm", plan(2))
        assert table.remembered == ["as-predicted.json"]

    assert not table.remembered


def test_a_score_that_was_altered_is_found_again(table: Table, capsys: pytest.CaptureFixture[str]) -> None:
    interrupted(table)
    path = Path(table.folder, scoring.SCORED, "as-predicted.json")
    path.write_text(path.read_text().replace('"validation_auc": 0.5', '"validation_auc": 0.7'))

    with table.open() as score:
        assert score("as-predicted", "afm", plan(2))["validation_auc"] == 0.5

    assert table.scored == 2
    assert "as-predicted.json: damaged (altered" in capsys.readouterr().err.replace("\n", "")
