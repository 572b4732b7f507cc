"""What the command says of its options before anything starts, and of the scores at the end."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from afm_dist.errors import OptionError
from data_prep.scoring.pipeline import ScoringSummary
from jobs.predict import Predict, main, print_summary
from tests.data_prep.scoring.conftest import write_csv
from tests.data_prep.scoring.models import Trained


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "--batch-size 0: must be"),
        ({"max_bad_rows": 1.5}, r"--max-bad-rows 1\.5: must be"),
        ({"keep": ("score",)}, "--keep score: the result has such a column"),
        ({"output": "rows.csv"}, "--output .*rows.csv: this is an input"),
    ],
)
def test_a_dry_run_refuses_what_the_run_would(
    trained: Trained, tmp_path: Path, options: dict[str, object], message: str
) -> None:
    rows = write_csv(tmp_path / "rows.csv", ["user", "ad", "price", "score"], [["u1", "a", "1", "2"]])
    output = str(tmp_path / str(options.pop("output", "scores.parquet")))
    config = Predict(
        checkpoint=trained.checkpoint, input=(str(rows),), output=output, dry_run=True, **options
    )  # type: ignore[arg-type]

    with pytest.raises(OptionError, match=message):
        main(config)


@pytest.mark.parametrize(
    ("before", "printed"),
    [
        ({"test": {"user": 0.25}}, "90% of the tokens are unknown to the model, 25% when it was trained; is"),
        ({"validation": {"user": 0.125}}, "unknown to the model, 12% when it was trained; is"),
        ({}, "90% of the tokens are unknown to the model; is the column written as it was when"),
        ({"test": {"user": 0.8}}, ""),
    ],
)
def test_unknown_tokens_are_compared_with_what_was_measured(
    trained: Trained, capsys: pytest.CaptureFixture[str], before: dict[str, object], printed: str
) -> None:
    manifest = replace(trained.manifest, facts={**trained.manifest.facts, "unknown_share": before})

    print_summary(
        ScoringSummary(rows=9, rejected=0, mean=0.5, unknown={"user": 0.9}), manifest, "scores.parquet"
    )

    shown = capsys.readouterr().err
    assert printed in shown
    assert bool(shown) == bool(printed)
