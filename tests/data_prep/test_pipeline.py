"""The whole preparation against plain Python that reads the same small log row by row."""

from __future__ import annotations

import math
import os
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from afm_dist import storage
from afm_dist.dataset.manifest import Manifest
from afm_dist.errors import DataError, OptionError
from data_prep import field_stage, vocabulary
from data_prep.pipeline import prepare
from data_prep.protocol import Protocol
from data_prep.sources import parquet_table
from data_prep.sources.criteo import CriteoSource
from data_prep.sources.source import Block, RawRows
from data_prep.sources.tabular import TabularSource
from data_prep.sources.tabular_columns import ColumnOptions
from data_prep.split import SPLITS, RandomSplit
from tests.data_prep.prepared import decoded, read_split, read_vocabulary
from tests.data_prep.raw_logs import Row, criteo_text, read_criteo_line

ROWS = 1_500
BLOCK_BYTES = 50_000
PROTOCOL = Protocol(seed=5, threshold=3, rows_per_shard=250, max_bad_rows=0.05)
INTEGERS = [f"I{n}" for n in range(1, 14)]
TOKENS = [f"C{n}" for n in range(1, 27)]


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log with a malformed line in the middle."""
    path = tmp_path_factory.mktemp("raw") / "train.txt"
    lines = criteo_text(ROWS).splitlines()
    lines[1234] = "broken"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def dataset(local_ray: None, log: Path, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    output = tmp_path_factory.mktemp("dataset")
    return prepare(CriteoSource([str(log)], block_bytes=BLOCK_BYTES), str(output), PROTOCOL)


def _rows_by_split(log: Path) -> dict[str, list[Row]]:
    """Well-formed rows per split, in order of the log."""
    lines = log.read_text().splitlines()
    rule = RandomSplit(seed=PROTOCOL.seed, validation_share=0.1, test_share=0.1)
    rows: dict[str, list[Row]] = {name: [] for name in SPLITS}
    for line, split in zip(lines, rule(0, np.arange(len(lines))), strict=True):
        if (row := read_criteo_line(line)) is not None:
            rows[SPLITS[split]].append(row)
    return rows


@pytest.mark.ray
def test_vocabularies_hold_the_training_tokens_by_descending_count(dataset: Manifest, log: Path) -> None:
    train = _rows_by_split(log)["train"]
    for position, field in enumerate(TOKENS):
        counts = Counter(row[14 + position] or "" for row in train)
        kept = sorted(
            ((token, n) for token, n in counts.items() if n >= PROTOCOL.threshold),
            key=lambda e: (-e[1], e[0]),
        )
        unknown = len(train) - sum(n for _, n in kept)
        wanted = [(0, None, unknown), *((i, token, n) for i, (token, n) in enumerate(kept, start=1))]

        assert read_vocabulary(dataset, field) == wanted
        assert next(f.cardinality for f in dataset.fields if f.name == field) == len(wanted)


@pytest.mark.ray
@pytest.mark.parametrize("split", SPLITS)
def test_shards_hold_every_row_of_the_split_in_order(dataset: Manifest, log: Path, split: str) -> None:
    rows = _rows_by_split(log)[split]
    columns = read_split(dataset, split)

    assert list(columns) == [dataset.label, *INTEGERS, *TOKENS]
    assert columns[dataset.label] == [row[0] for row in rows]
    for position, field in enumerate(TOKENS):
        ids = {token: i for i, token, _ in read_vocabulary(dataset, field) if i}
        assert columns[field] == [ids.get(row[14 + position] or "", 0) for row in rows]


@pytest.mark.ray
def test_decoding_gives_back_every_token_above_the_threshold(dataset: Manifest, log: Path) -> None:
    raw = [[row[0], *(token or "" for token in row[14:])] for row in _rows_by_split(log)["train"]]
    counts = [Counter(column) for column in zip(*raw, strict=True)]

    rows = [[row[0], *row[14:]] for row in decoded(dataset, "train")]

    assert rows == [
        [row[0], *(t if counts[i][t] >= PROTOCOL.threshold else None for i, t in enumerate(row) if i)]
        for row in raw
    ]


@pytest.mark.ray
def test_numbers_are_standardised_by_the_training_split(dataset: Manifest, log: Path) -> None:
    rows = _rows_by_split(log)
    for position, field in enumerate(dataset.numeric):
        logs = [_log(row[1 + position]) for row in rows["train"]]
        present = np.array([value for value in logs if value is not None])
        assert field.mean == pytest.approx(present.mean(), abs=2**-12)
        assert field.deviation == pytest.approx(present.std(), abs=2**-12)
        for split in SPLITS:
            wanted = [_log(row[1 + position]) for row in rows[split]]
            got = read_split(dataset, split)[field.name]
            assert [value is None for value in got] == [value is None for value in wanted]
            assert [v for v in got if v is not None] == pytest.approx(
                [(v - field.mean) / field.deviation for v in wanted if v is not None], abs=1e-5
            )


def _log(value: float | None) -> float | None:
    return None if value is None else math.copysign(math.log1p(abs(value)), value)


@pytest.mark.ray
def test_files_are_those_of_the_manifest_and_nothing_else_is_left(dataset: Manifest) -> None:
    for split in SPLITS:
        names = storage.list_names(storage.join(dataset.location, split))
        assert [f"{split}/{name}" for name in names] == [shard.path for shard in dataset.shards(split)]
        assert all(0 < shard.rows <= PROTOCOL.rows_per_shard for shard in dataset.shards(split))
    assert storage.list_names(storage.join(dataset.location, "vocabulary")) == sorted(
        f"{field}.parquet" for field in TOKENS
    )
    for file in [*dataset.vocabulary.values(), *(s for shards in dataset.splits.values() for s in shards)]:
        data = storage.read_bytes(storage.join(dataset.location, file.path))
        assert (len(data), storage.sha256(data)) == (file.bytes, file.sha256)
    assert storage.list_names(dataset.location) == sorted(
        ["manifest.json", "prepare.json", "rejected", "vocabulary", *SPLITS]
    )


@pytest.mark.ray
def test_facts_count_rows_missing_values_and_unknown_tokens(dataset: Manifest, log: Path) -> None:
    rows = _rows_by_split(log)
    facts = dataset.facts
    assert (facts["rows_read"], facts["rows_rejected"]) == (ROWS, 1)
    for split in SPLITS:
        positives = sum(row[0] for row in rows[split])
        assert facts["splits"][split] == {"rows": len(rows[split]), "positives": positives}
    everything = [row for split in SPLITS for row in rows[split]]
    for column, field in enumerate([*INTEGERS, *TOKENS], start=1):
        missing = sum(row[column] is None for row in everything) / len(everything)
        assert facts["missing_share"][field] == pytest.approx(missing, abs=1e-6)
    test = read_split(dataset, "test")
    assert facts["unknown_share"]["test"] == {
        field: pytest.approx(test[field].count(0) / len(test[field]), abs=1e-6) for field in TOKENS
    }
    (source,) = dataset.sources
    assert source == {
        "name": "train.txt",
        "bytes": log.stat().st_size,
        "sha256": storage.sha256(log.read_bytes()),
    }


@pytest.mark.ray
def test_a_malformed_row_is_kept_with_file_line_and_reason(dataset: Manifest, log: Path) -> None:
    (name,) = storage.list_names(storage.join(dataset.location, "rejected"))

    assert storage.read_json(storage.join(dataset.location, "rejected", name), object) == {
        "file": str(log),
        "line": 1235,
        "reason": "1 fields instead of 40",
        "text": "broken",
    }


class MortalSource(CriteoSource):
    """Ends the worker that reads its second block, once."""

    def read(self, block: Block, first_row: int) -> Iterator[RawRows]:
        grave = Path(f"{self.paths[0]}.died")
        for rows in super().read(block, first_row):
            if block.start == self.block_bytes and not grave.exists():
                grave.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            yield rows


@pytest.mark.ray
def test_a_killed_worker_changes_no_bit(dataset: Manifest, log: Path, tmp_path: Path) -> None:
    source = MortalSource([str(log)], block_bytes=BLOCK_BYTES)

    again = prepare(source, str(tmp_path / "data"), PROTOCOL)

    assert Path(f"{log}.died").exists()
    assert again.fingerprint() == dataset.fingerprint()


@pytest.mark.ray
def test_one_process_gives_the_same_bits_as_ray(
    dataset: Manifest, log: Path, tmp_path: Path, here: pytest.MonkeyPatch
) -> None:
    again = prepare(CriteoSource([str(log)], block_bytes=BLOCK_BYTES), str(tmp_path), PROTOCOL)

    assert again.fingerprint() == dataset.fingerprint()


@pytest.fixture(scope="module")
def zeros(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log with both zeros, and the same number written in two ways."""
    path = tmp_path_factory.mktemp("raw") / "train.txt"
    generator = np.random.default_rng(0)
    lines = []
    for line in criteo_text(600, seed=1).splitlines():
        fields = line.split("\t")
        fields[3], fields[4] = generator.choice(["0", "-0"]), generator.choice(["7", "007", "0000000007"])
        lines.append("\t".join(fields))
    path.write_text("\n".join(lines) + "\n")
    return path


def _prepare(path: Path, output: Path, *, block_bytes: int | None = None) -> Manifest:
    return prepare(CriteoSource([str(path)], block_bytes=block_bytes), str(output), PROTOCOL)


@pytest.mark.parametrize("block_bytes", [9_001, 40_000])
def test_the_size_of_blocks_changes_no_bit(
    zeros: Path, tmp_path: Path, here: pytest.MonkeyPatch, block_bytes: int
) -> None:
    small = CriteoSource([str(zeros)], block_bytes=block_bytes)
    assert len(small.blocks()) > 3

    in_blocks = prepare(small, str(tmp_path / "blocks"), PROTOCOL)

    assert in_blocks.fingerprint() == _prepare(zeros, tmp_path / "whole").fingerprint()


def test_the_order_of_tasks_changes_no_bit(zeros: Path, tmp_path: Path, here: pytest.MonkeyPatch) -> None:
    forwards = _prepare(zeros, tmp_path / "forwards", block_bytes=30_000)

    def backwards(submit: Any, items: list[Any], *, finished: Any, **_: Any) -> None:
        for item in reversed(items):
            finished(item, submit(item))

    here.setattr("data_prep.work.run_tasks", backwards)

    assert _prepare(zeros, tmp_path / "backwards", block_bytes=30_000).fingerprint() == forwards.fingerprint()


def test_fields_in_ranges_of_tokens_and_in_small_groups_change_no_bit(
    zeros: Path, tmp_path: Path, here: pytest.MonkeyPatch
) -> None:
    whole = _prepare(zeros, tmp_path / "whole")
    here.setattr(field_stage, "GROUP_TOKENS", 100)
    here.setattr(field_stage, "SAMPLED_PARTS", 2)
    here.setattr(vocabulary, "RANGE_TOKENS", 40)
    here.setattr(vocabulary, "MERGE_TOKENS", 50)
    ranges: list[int] = []
    cut_into_ranges = vocabulary.cut_into_ranges

    def cut(*arguments: Any) -> list[vocabulary.TokenRange]:
        made = cut_into_ranges(*arguments)
        ranges.append(len(made))
        return made

    here.setattr(vocabulary, "cut_into_ranges", cut)

    in_ranges = _prepare(zeros, tmp_path / "ranges", block_bytes=30_000)

    assert len(ranges) > 10
    assert max(ranges) > 3
    assert in_ranges.fingerprint() == whole.fingerprint()


def test_a_number_written_in_two_ways_is_one_number(
    zeros: Path, tmp_path: Path, here: pytest.MonkeyPatch
) -> None:
    columns = read_split(_prepare(zeros, tmp_path), "train")

    assert len(set(columns["I4"])) == 1
    assert {math.copysign(1, value) for value in columns["I3"]} == {1.0}


def test_a_field_may_be_called_label_when_the_label_is_not(tmp_path: Path, here: pytest.MonkeyPatch) -> None:
    path = tmp_path / "t.csv"
    path.write_text("click,label,price\n" + "".join(f"{i % 2},{i % 3},{i / 8}\n" for i in range(60)))
    source = TabularSource([str(path)], ColumnOptions(label="click", categorical=("label",)))

    made = prepare(source, str(tmp_path / "data"), Protocol(test_share=0, validation_share=0))

    assert [row[:2] for row in decoded(made, "train")] == [[i % 2, str(i % 3)] for i in range(60)]


def test_several_files_are_one_log_in_order(tmp_path: Path, here: pytest.MonkeyPatch) -> None:
    texts = [criteo_text(40, seed=seed) for seed in range(3)]
    for day, text in enumerate(texts):
        (tmp_path / f"day_{day}").write_text(text)
    source = CriteoSource([str(tmp_path / f"day_{day}") for day in range(3)], block_bytes=3_000)

    made = prepare(source, str(tmp_path / "data"), Protocol(threshold=1, test_share=0, validation_share=0))

    wanted = [read_criteo_line(line) for text in texts for line in text.splitlines()]
    assert [[row[0], *row[14:]] for row in decoded(made, "train")] == [
        [row[0], *(token or "" for token in row[14:])] for row in wanted if row
    ]
    assert [source["name"] for source in made.sources] == ["day_0", "day_1", "day_2"]


def test_row_groups_of_parquet_change_no_row(tmp_path: Path, here: pytest.MonkeyPatch) -> None:
    frame = pl.DataFrame(
        {
            "click": [i % 4 == 0 for i in range(200)],
            "ad": [i * i % 17 for i in range(200)],
            "price": [None if i % 9 == 0 else i / 8 for i in range(200)],
        }
    )
    made = []
    for row_group_size, block_rows in ((200, 1 << 16), (30, 50), (7, 1)):
        path = tmp_path / f"{row_group_size}.parquet"
        frame.write_parquet(path, row_group_size=row_group_size)
        here.setattr(parquet_table, "BLOCK_ROWS", block_rows)
        source = TabularSource([str(path)], ColumnOptions(label="click"))
        assert len(source.blocks()) == {200: 1, 30: 4, 7: 29}[row_group_size]
        made.append(prepare(source, str(tmp_path / f"data-{row_group_size}"), Protocol(threshold=1)))

    assert sum(made[0].rows(split) for split in SPLITS) == 200
    for other in made[1:]:
        assert other.splits == made[0].splits
        assert other.vocabulary == made[0].vocabulary


def test_every_field_is_built_once_and_large_ones_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(field_stage, "GROUP_TOKENS", 10)

    groups = field_stage.group_fields({0: 3, 1: 50, 2: 0, 3: 10, 4: 4, 7: 3})

    assert sorted(index for group in groups for index in group) == [0, 1, 2, 3, 4, 7]
    assert groups == [[1], [3], [4, 0, 7, 2]]


def test_one_row_is_too_few(tmp_path: Path, here: pytest.MonkeyPatch) -> None:
    path = tmp_path / "train.txt"
    path.write_text(criteo_text(1))
    protocol = Protocol(test_share=0.98, validation_share=0.0)

    with pytest.raises(DataError, match="too few"):
        prepare(CriteoSource([str(path)]), str(tmp_path / "data"), protocol)


def test_a_vocabulary_with_nothing_above_the_threshold_is_warned_of(
    tmp_path: Path, here: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "t.csv"
    path.write_text("click,ad,site\n" + "".join(f"{i % 2},a{i},s{i % 2}\n" for i in range(40)))

    made = prepare(TabularSource([str(path)], ColumnOptions(label="click")), str(tmp_path / "d"), Protocol())

    assert "every token of ad occurs fewer than 2 times" in capsys.readouterr().err
    assert set(read_split(made, "train")["ad"]) == {0}


def test_a_folder_with_other_files_is_not_written_to(tmp_path: Path, log: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")

    with pytest.raises(OptionError, match=r"holds other files \(thesis\.tex\)"):
        prepare(CriteoSource([str(log)]), str(tmp_path), Protocol())

    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
