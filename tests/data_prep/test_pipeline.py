"""The whole preparation against plain Python that reads the same small log row by row."""

from __future__ import annotations

import gzip
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from afm_dist import cluster, storage
from afm_dist.dataset.manifest import Manifest
from afm_dist.errors import DataError, OptionError
from data_prep import pipeline
from data_prep.pipeline import prepare
from data_prep.plan import make_plan, why_prepare
from data_prep.protocol import Protocol
from data_prep.sources.criteo import CriteoSource
from data_prep.split import SPLITS
from data_prep.vocabulary import vocabulary_path
from tests.data_prep.raw_logs import criteo_text, read_criteo_line

pytestmark = pytest.mark.ray

ROWS = 3_000
PROTOCOL = Protocol(seed=5, threshold=3, rows_per_shard=500, max_bad_rows=0.05)
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
    return prepare(CriteoSource([str(log)], block_bytes=50_000), str(output), PROTOCOL)


def _rows_by_split(log: Path) -> dict[str, list[list[Any]]]:
    """Well-formed rows per split, in order of the log."""
    lines = log.read_text().splitlines()
    splits = PROTOCOL.split(0, np.arange(len(lines)))
    rows: dict[str, list[list[Any]]] = {name: [] for name in SPLITS}
    for line, split in zip(lines, splits, strict=True):
        if (row := read_criteo_line(line)) is not None:
            rows[SPLITS[split]].append(row)
    return rows


def _read_split(manifest: Manifest, split: str) -> dict[str, list[Any]]:
    tables = [pq.read_table(storage.join(manifest.location, s.path)) for s in manifest.shards(split)]
    return pa.concat_tables(tables).to_pydict()


def _vocabulary(manifest: Manifest, field: str) -> list[tuple[int, str | None, int]]:
    table = pq.read_table(vocabulary_path(manifest.location, field))
    return list(zip(*(table[name].to_pylist() for name in ("id", "token", "count")), strict=True))


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

        assert _vocabulary(dataset, field) == wanted
        assert next(f.cardinality for f in dataset.fields if f.name == field) == len(wanted)


@pytest.mark.parametrize("split", SPLITS)
def test_shards_hold_every_row_of_the_split_in_order(dataset: Manifest, log: Path, split: str) -> None:
    rows = _rows_by_split(log)[split]
    columns = _read_split(dataset, split)

    assert list(columns) == [dataset.label, *INTEGERS, *TOKENS]
    assert columns[dataset.label] == [row[0] for row in rows]
    for position, field in enumerate(TOKENS):
        ids = {token: i for i, token, _ in _vocabulary(dataset, field) if i}
        assert columns[field] == [ids.get(row[14 + position] or "", 0) for row in rows]


def test_decoding_gives_back_every_token_above_the_threshold(dataset: Manifest, log: Path) -> None:
    rows = _rows_by_split(log)["train"]
    columns = _read_split(dataset, "train")
    for position, field in enumerate(TOKENS):
        raw = [row[14 + position] or "" for row in rows]
        counts = Counter(raw)
        tokens = [token for _, token, _ in _vocabulary(dataset, field)]

        decoded = [tokens[i] for i in columns[field]]

        assert decoded == [token if counts[token] >= PROTOCOL.threshold else None for token in raw]


def test_numbers_are_standardised_by_the_training_split(dataset: Manifest, log: Path) -> None:
    rows = _rows_by_split(log)
    for position, field in enumerate(dataset.numeric):
        logs = [_log(row[1 + position]) for row in rows["train"]]
        present = np.array([value for value in logs if value is not None])
        assert field.mean == pytest.approx(present.mean(), abs=2**-12)
        assert field.deviation == pytest.approx(present.std(), abs=2**-12)
        for split in SPLITS:
            wanted = [_log(row[1 + position]) for row in rows[split]]
            got = _read_split(dataset, split)[field.name]
            assert [value is None for value in got] == [value is None for value in wanted]
            assert [v for v in got if v is not None] == pytest.approx(
                [(v - field.mean) / field.deviation for v in wanted if v is not None], abs=1e-5
            )


def _log(value: float | None) -> float | None:
    return None if value is None else math.copysign(math.log1p(abs(value)), value)


def test_shards_are_those_of_the_manifest_and_nothing_else_is_left(dataset: Manifest) -> None:
    for split in SPLITS:
        names = storage.list_names(storage.join(dataset.location, split))
        assert [f"{split}/{name}" for name in names] == [shard.path for shard in dataset.shards(split)]
        for shard in dataset.shards(split):
            data = storage.read_bytes(storage.join(dataset.location, shard.path))
            assert (len(data), storage.sha256(data)) == (shard.bytes, shard.sha256)
            assert 0 < shard.rows <= PROTOCOL.rows_per_shard
    assert storage.list_names(dataset.location) == sorted(
        ["manifest.json", "prepare.json", "rejected", "vocabulary", *SPLITS]
    )


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
    test = _read_split(dataset, "test")
    assert facts["unknown_share"]["test"] == {
        field: pytest.approx(test[field].count(0) / len(test[field]), abs=1e-6) for field in TOKENS
    }


def test_a_malformed_row_is_kept_with_file_line_and_reason(dataset: Manifest, log: Path) -> None:
    (name,) = storage.list_names(storage.join(dataset.location, "rejected"))

    assert storage.read_json(storage.join(dataset.location, "rejected", name)) == {
        "file": str(log),
        "line": 1235,
        "reason": "1 fields instead of 40",
        "text": "broken",
    }


def _one_at_a_time(submit: Callable, items: list, *, finished: Callable) -> None:
    import ray

    for item in reversed(items):
        finished(item, ray.get(submit(item)))


def test_one_worker_in_another_order_gives_the_same_bits(
    dataset: Manifest, log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "run_tasks", _one_at_a_time)

    again = prepare(CriteoSource([str(log)], block_bytes=50_000), str(tmp_path / "data"), PROTOCOL)

    assert again.fingerprint() == dataset.fingerprint()


@pytest.mark.parametrize("block_bytes", [13_001, 10_000_000])
def test_block_size_changes_neither_rows_nor_vocabulary(
    dataset: Manifest, log: Path, tmp_path: Path, block_bytes: int
) -> None:
    other = prepare(CriteoSource([str(log)], block_bytes=block_bytes), str(tmp_path / "data"), PROTOCOL)

    assert other.schema() == dataset.schema()
    for split in SPLITS:
        assert _read_split(other, split) == _read_split(dataset, split)


def test_a_gzip_copy_gives_the_same_rows(dataset: Manifest, log: Path, tmp_path: Path) -> None:
    copy = tmp_path / "train.txt.gz"
    copy.write_bytes(gzip.compress(log.read_bytes()))

    other = prepare(CriteoSource([str(copy)]), str(tmp_path / "data"), PROTOCOL)

    assert other.schema() == dataset.schema()
    assert _read_split(other, "test") == _read_split(dataset, "test")


def test_a_finished_preparation_is_up_to_date_without_ray(
    dataset: Manifest, log: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cluster, "ensure_ray", lambda: pytest.fail("started Ray"))

    again = prepare(CriteoSource([str(log)], block_bytes=50_000), dataset.location, PROTOCOL)

    assert again.fingerprint() == dataset.fingerprint()
    assert "up to date" in capsys.readouterr().out


@pytest.mark.parametrize("stage", ["count", "fields", "encode", "finish"])
def test_an_interrupted_preparation_goes_on_and_gives_the_same_bits(
    dataset: Manifest,
    log: Path,
    tmp_path: Path,
    stage: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = CriteoSource([str(log)], block_bytes=50_000)
    output = str(tmp_path / "data")

    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pipeline._Preparation, stage, interrupt)
        prepare(source, output, PROTOCOL)
    with pytest.raises(DataError, match="not a dataset directory"):
        Manifest.load(output)

    resumed = prepare(source, output, PROTOCOL)

    assert resumed.fingerprint() == dataset.fingerprint()
    assert "tasks were done before" in capsys.readouterr().out


def test_other_options_are_named_and_redone(
    local_ray: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "train.txt").write_text(criteo_text(300))
    source = CriteoSource([str(tmp_path / "train.txt")])
    output = str(tmp_path / "data")
    prepare(source, output, Protocol(threshold=1))

    again = prepare(source, output, Protocol(threshold=4))

    assert "threshold 1 -> 4" in capsys.readouterr().out
    assert again.facts["threshold"] == 4


def test_a_changed_input_and_a_missing_shard_are_noticed(tmp_path: Path, local_ray: None) -> None:
    path = tmp_path / "train.txt"
    path.write_text(criteo_text(300))
    output = str(tmp_path / "data")
    prepare(CriteoSource([str(path)]), output, Protocol())
    plan = make_plan(CriteoSource([str(path)]), Protocol())
    assert why_prepare(output, plan) is None

    path.write_text(criteo_text(301))
    changed = make_plan(CriteoSource([str(path)]), Protocol())
    storage.remove(storage.join(output, "test", "part-00000.parquet"))

    assert why_prepare(output, changed) == "again: the input changed"
    assert why_prepare(output, plan) == "again: test/part-00000.parquet is missing"


def test_a_failed_preparation_leaves_the_dataset_that_was_there(tmp_path: Path, local_ray: None) -> None:
    good, bad = tmp_path / "good.txt", tmp_path / "bad.txt"
    good.write_text(criteo_text(300))
    bad.write_text(criteo_text(20) + "broken\n" * 12)
    output = str(tmp_path / "data")
    before = prepare(CriteoSource([str(good)]), output, Protocol())

    with pytest.raises(DataError, match=r"12 of 32 rows are malformed, more than --max-bad-rows 0.001"):
        prepare(CriteoSource([str(bad)]), output, Protocol())

    assert Manifest.load(output).fingerprint() == before.fingerprint()
    assert len(_read_split(before, "train")["label"]) == before.rows("train")


def test_too_many_malformed_rows_name_the_first_ten(tmp_path: Path, local_ray: None) -> None:
    path = tmp_path / "train.txt"
    path.write_text(criteo_text(5) + "broken\n" * 12)

    with pytest.raises(DataError) as caught:
        prepare(CriteoSource([str(path)]), str(tmp_path / "data"), Protocol())

    message = str(caught.value)
    assert "\n" not in message
    assert [f"train.txt:{line} 1 fields" in message for line in (6, 15, 16)] == [True, True, False]


def test_a_log_without_a_single_valid_label_says_so(tmp_path: Path, local_ray: None) -> None:
    path = tmp_path / "train.txt"
    path.write_text("".join("yes" + line[1:] + "\n" for line in criteo_text(30).splitlines()))

    with pytest.raises(
        DataError, match=r"not one of 30 rows has a label of 0 or 1: column 'label' holds 'yes'"
    ):
        prepare(CriteoSource([str(path)]), str(tmp_path / "data"), Protocol())


def test_a_truncated_gzip_log_is_refused_in_one_line(tmp_path: Path, local_ray: None) -> None:
    path = tmp_path / "day_0.gz"
    path.write_bytes(gzip.compress(criteo_text(300).encode())[:-100])

    with pytest.raises(DataError, match=r"day_0\.gz: the gzip file is truncated"):
        prepare(CriteoSource([str(path)]), str(tmp_path / "data"), Protocol())


def test_one_row_is_too_few(tmp_path: Path, local_ray: None) -> None:
    path = tmp_path / "train.txt"
    path.write_text(criteo_text(1))
    protocol = Protocol(test_share=0.98, validation_share=0.0)

    with pytest.raises(DataError, match="too few"):
        prepare(CriteoSource([str(path)]), str(tmp_path / "data"), protocol)


def test_a_folder_with_other_files_is_not_written_to(tmp_path: Path, log: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")

    with pytest.raises(OptionError, match=r"holds other files \(thesis\.tex\)"):
        prepare(CriteoSource([str(log)]), str(tmp_path), Protocol())

    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_an_empty_file_and_another_format_are_refused(tmp_path: Path) -> None:
    empty, words = tmp_path / "empty.txt", tmp_path / "words.txt"
    empty.touch()
    words.write_text("a,b\n1,2\n")

    with pytest.raises(DataError, match=r"empty\.txt: the file is empty"):
        CriteoSource([str(empty)])
    with pytest.raises(DataError, match=r"words\.txt:1: no tab"):
        CriteoSource([str(words)])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 0}, "--threshold 0"),
        ({"validation_share": 0.6, "test_share": 0.4}, "leave nothing to train on"),
        ({"test_share": -0.1}, "--test-share -0.1"),
        ({"rows_per_shard": 0}, "--rows-per-shard 0"),
        ({"max_bad_rows": 2.0}, "--max-bad-rows 2.0"),
    ],
)
def test_options_that_cannot_work_are_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        Protocol(**options)
