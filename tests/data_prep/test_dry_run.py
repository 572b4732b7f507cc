from __future__ import annotations

import re
from pathlib import Path

import pytest

from afm_dist.errors import OptionError
from afm_dist.runtime.resources import Cluster, Node
from data_prep import dry_run
from data_prep.dry_run import FORMATS, show_plan, show_synthetic_plan
from data_prep.protocol import ColumnRule, Protocol
from data_prep.sources.criteo import CriteoSource
from data_prep.sources.planted_shapes import SHAPES, ShapeName
from tests.data_prep.raw_logs import criteo_text

FOUR_CORES = Node(name="this machine", cpus=4, memory=8_000_000_000, object_store=256 << 20)
LAST_FILE = Protocol(split_by="last-file", validation_share=0.5, test_share=0.5)


def _days(folder: Path, *rows: int) -> CriteoSource:
    paths = [folder / f"day_{day}" for day in range(len(rows))]
    for path, n_rows in zip(paths, rows, strict=True):
        path.write_text(criteo_text(n_rows))
    return CriteoSource([str(path) for path in paths])


def _numbers(shown: str, pattern: str) -> list[int]:
    found = re.search(pattern.replace("N", r"([\d,]+)"), shown)
    assert found is not None, shown
    return [int(number.replace(",", "")) for number in found.groups()]


def test_shares_of_the_rows_are_taken_of_all_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    show_plan(_days(tmp_path, 1_000, 1_000), Protocol(validation_share=0.2, test_share=0.1))

    shown = capsys.readouterr().out
    splits = _numbers(shown, "about N training, N validation and N test rows")
    assert splits == pytest.approx([1_400, 400, 200], rel=0.02)


def test_shares_of_the_last_file_are_taken_of_its_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    show_plan(_days(tmp_path, 2_000, 1_000, 600), LAST_FILE)

    shown = capsys.readouterr().out
    splits = _numbers(shown, "about N training, N validation and N test rows")
    assert splits == pytest.approx([3_000, 300, 300], rel=0.05)


def test_no_number_is_told_of_splits_that_a_column_decides(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    show_plan(_days(tmp_path, 100), Protocol(split_by="column", split_column="I1", test_from="3"))

    shown = capsys.readouterr().out
    assert "column 'I1' decides how many rows each split has" in shown
    assert "training" not in shown


@pytest.mark.parametrize("shape", FORMATS)
def test_a_synthetic_log_has_the_size_and_the_fields_of_its_shape(
    capsys: pytest.CaptureFixture[str], shape: ShapeName
) -> None:
    show_synthetic_plan(1_000_000, shape, Protocol())

    shown = capsys.readouterr().out
    described = SHAPES[shape]
    n_fields = len(described.integers) + len(described.tokens) + bool(described.days)
    assert f"1,000,000 rows, about {described.bytes_per_row:,}.0 MB" in shown
    assert f"vocabulary: {n_fields} fields" in shown
    assert f"encode: shards of up to 100,000 rows, up to {1 + 4 * n_fields}.0 MB" in shown


def test_a_field_that_is_left_out_is_not_counted(capsys: pytest.CaptureFixture[str]) -> None:
    show_synthetic_plan(1_000, "criteo", Protocol(columns=(ColumnRule(column="I*", transform=None),)))

    assert "vocabulary: 26 fields" in capsys.readouterr().out


def test_every_stage_is_named_and_the_time_said_to_be_rough(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dry_run, "view", lambda: Cluster(nodes=(FOUR_CORES,), where="this machine"))

    show_synthetic_plan(60_000_000, "criteo", Protocol())

    shown = capsys.readouterr().out
    stages = ["scan", "parse", "vocabulary", "encode", "shuffle"]
    assert re.findall(r"^ +(\w+):", shown, re.MULTILINE) == stages
    assert "very roughly 100 s on 4 cores" in shown


def test_what_the_preparation_would_refuse_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="there is one file"):
        show_plan(_days(tmp_path, 100), LAST_FILE)
    with pytest.raises(OptionError, match="--split-column day: the log has"):
        show_synthetic_plan(10, "criteo", Protocol(split_by="column", split_column="day", test_from="3"))


def test_a_held_out_split_without_rows_is_warned_of(capsys: pytest.CaptureFixture[str]) -> None:
    show_synthetic_plan(5, "criteo", Protocol(test_share=0.4))

    shown = capsys.readouterr()
    assert "2 training, 0 validation and 2 test rows" in shown.out
    assert "parse: 1 block, one task each" in shown.out
    assert shown.err == "warning: too few rows for a validation split: 0.1 of 5 is none, or hardly one\n"
