"""What a job would take is told before anything starts, also of no rows at all."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from afm_dist.checkpoint.config import load_config
from afm_dist.planning.show import show
from afm_dist.runtime.resources import AUTOMATIC
from data_prep.scoring.estimate import BYTES_PER_ROW, BYTES_PER_TEXT, scoring_plan
from tests.data_prep.scoring.conftest import HEADER, ROWS, write_csv
from tests.data_prep.scoring.models import Trained


def test_estimate_grows_with_the_rows_and_memory_does_not(trained: Trained, tmp_path: Path) -> None:
    empty = write_csv(tmp_path / "empty.csv", HEADER, [])

    def estimate(*paths: Path):
        output = str(tmp_path / "scores.parquet")
        _, found = scoring_plan(
            load_config(trained.checkpoint), trained.manifest, trained.source(*paths), output, AUTOMATIC
        ).estimates
        return found

    some, none = estimate(), estimate(empty)

    assert some.rows == pytest.approx(ROWS, rel=0.1)
    assert some.disk - none.disk == pytest.approx(ROWS * BYTES_PER_ROW, rel=0.1)
    assert some.memory == none.memory
    assert list(tmp_path.iterdir()) == [empty]


def test_columns_to_carry_along_take_disk_in_the_parts_and_in_the_result(
    trained: Trained, tmp_path: Path
) -> None:
    rows = 1000
    columns = {"user": ["u1"] * rows, "ad": ["a"] * rows, "price": [1.0] * rows}
    of_types = {"id": pa.int64(), "day": pa.date32(), "is_test": pa.bool_()}
    values = {name: pa.nulls(rows, kind) for name, kind in of_types.items()}
    pq.write_table(pa.table({**columns, **values}), tmp_path / "rows.parquet")

    def disk(*keep: str) -> int:
        source = trained.source(tmp_path / "rows.parquet", keep=keep)
        output = f"{tmp_path}/scores.parquet"
        plan = scoring_plan(load_config(trained.checkpoint), trained.manifest, source, output, AUTOMATIC)
        return plan.estimates[1].disk

    assert disk(*of_types) - disk() == 2 * rows * (8 + 4 + 1)
    assert disk("user") - disk() == 2 * rows * BYTES_PER_TEXT


def test_plan_holds_the_sorting_of_vocabularies_and_their_copies(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, source = load_config(trained.checkpoint), trained.source()

    plan = scoring_plan(config, trained.manifest, source, f"{tmp_path}/scores.parquet", AUTOMATIC)
    elsewhere = scoring_plan(config, trained.manifest, source, "s3://bucket/scores.parquet", AUTOMATIC)

    assert [estimate.stage for estimate in plan.estimates] == ["vocabulary", "score"]
    assert all(estimate.memory > 0 and estimate.disk > 0 for estimate in plan.estimates)
    assert "mapped from disk" in plan.estimates[1].note
    assert "copied by each worker process to TMPDIR" in elsewhere.estimates[1].note
    show(plan, check=True)
    assert "vocabulary" in capsys.readouterr().out
