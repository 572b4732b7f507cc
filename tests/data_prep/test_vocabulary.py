from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from afm_dist import storage
from data_prep import vocabulary
from data_prep.vocabulary import (
    Encoder,
    TokenCounts,
    TokenRange,
    assign_ids,
    count_histogram,
    cut_into_ranges,
    first_ids,
    merge_ids,
    read_counts,
    write_counts,
    write_ids,
    write_vocabulary,
)

Token = str | int | None
TEXT = st.text("abc", min_size=1, max_size=2) | st.text("abcdefgh", min_size=2, max_size=2)
TEXTS = st.lists(st.none() | TEXT, min_size=1, max_size=60)
NUMBER = st.integers(0, 12) | st.integers(0, 99) | st.integers(2**32 - 3, 2**32 - 1)
NUMBERS = st.lists(st.none() | NUMBER, min_size=1, max_size=60)
COLUMNS = st.tuples(st.just(pl.String), TEXTS) | st.tuples(st.just(pl.UInt32), NUMBERS)


def _series(tokens: list[Token], dtype: type[pl.DataType]) -> pl.Series:
    return pl.Series("token", tokens, dtype=dtype)


def _parts(
    tokens: list[Token], dtype: type[pl.DataType], cuts: list[int]
) -> list[tuple[pl.Series, pl.Series]]:
    """Ascending distinct tokens and their counts, as a spool holds them, of consecutive rows."""
    bounds = [0, *sorted(min(cut, len(tokens)) for cut in cuts), len(tokens)]
    parts = []
    for start, stop in pairwise(bounds):
        counted = _series(tokens[start:stop], dtype).value_counts(name="count").sort("token")
        parts.append((counted["token"], counted["count"]))
    return parts


def _counted(parts: list[tuple[pl.Series, pl.Series]], threshold: int, tokens: TokenRange) -> pl.DataFrame:
    counts = TokenCounts()
    for values, count in parts:
        place = tokens.of(values)
        counts.add(values[place], count[place])
    return counts.at_least(threshold)


def _ids(tokens: list[Token], dtype: type[pl.DataType], threshold: int = 1) -> pl.DataFrame:
    counted = _counted(_parts(tokens, dtype, []), threshold, TokenRange())
    return assign_ids(counted, first_ids([count_histogram(counted)])[0])


def _oracle(tokens: list[Token], threshold: int) -> list[tuple[Token, int]]:
    kept = [(token, count) for token, count in Counter(tokens).items() if count >= threshold]
    return sorted(kept, key=lambda entry: (-entry[1], entry[0] is not None, entry[0] or 0))


@settings(deadline=None)
@given(COLUMNS, st.integers(1, 4), st.lists(st.integers(0, 60), max_size=4), st.integers(1, 30))
def test_ids_follow_counts_then_tokens_however_the_rows_are_cut(
    column: tuple[type[pl.DataType], list[Token]], threshold: int, cuts: list[int], merge_tokens: int
) -> None:
    dtype, tokens = column
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vocabulary, "MERGE_TOKENS", merge_tokens)
        counted = _counted(_parts(tokens, dtype, cuts), threshold, TokenRange())

    ids = assign_ids(counted, first_ids([count_histogram(counted)])[0])

    assert ids["token"].to_list() == sorted(ids["token"], key=lambda token: (token is not None, token))
    in_order = ids.sort("id")
    assert in_order.select("token", "count").rows() == _oracle(tokens, threshold)
    assert in_order["id"].to_list() == list(range(1, ids.height + 1))


@settings(deadline=None)
@given(
    column=COLUMNS,
    threshold=st.integers(1, 3),
    cuts=st.lists(st.integers(0, 60), max_size=3),
    range_tokens=st.integers(1, 30),
    sampled_tokens=st.integers(1, 20),
    chunk_ids=st.sampled_from([16, 32, 1 << 20]),
)
@example((pl.UInt32, [*range(50), *range(20)]), 1, [30], 7, 20, 16)
def test_ids_and_vocabulary_are_the_same_however_the_tokens_are_cut_into_ranges(
    tmp_path_factory: pytest.TempPathFactory,
    column: tuple[type[pl.DataType], list[Token]],
    threshold: int,
    cuts: list[int],
    range_tokens: int,
    sampled_tokens: int,
    chunk_ids: int,
) -> None:
    dtype, tokens = column
    folder = tmp_path_factory.mktemp("ranges")
    parts = _parts(tokens, dtype, cuts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vocabulary, "RANGE_TOKENS", range_tokens)
        patch.setattr(vocabulary, "SAMPLED_TOKENS", sampled_tokens)
        patch.setattr(vocabulary, "CHUNK_IDS", chunk_ids)
        ranges = cut_into_ranges(sum(len(values) for values, _ in parts), [values for values, _ in parts])
        paths = [str(folder / f"{number}.arrow") for number in range(len(ranges))]
        for place, path in zip(ranges, paths, strict=True):
            write_counts(_counted(parts, threshold, place), path)
        histograms = [count_histogram(read_counts(path)) for path in paths]
        of_ranges = []
        for path, first_id in zip(paths, first_ids(histograms), strict=True):
            of_ranges.append(assign_ids(read_counts(path), first_id))
            write_ids(of_ranges[-1], path + "-ids")
        chunks = list(merge_ids([path + "-ids" for path in paths]))

    whole = _ids(tokens, dtype, threshold)
    assert pl.concat(of_ranges).equals(whole)
    merged = pl.concat(chunks) if chunks else whole.clear()
    assert merged.equals(whole.sort("id"))
    assert all(0 < chunk.height <= chunk_ids for chunk in chunks)


def test_ranges_have_about_equally_many_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocabulary, "RANGE_TOKENS", 10_000)
    tokens = pl.Series(range(0, 10**9, 10_001), dtype=pl.UInt32)
    skewed = (tokens.cast(pl.Float64) ** 2 / 1e9).cast(pl.UInt32).unique().sort()

    ranges = cut_into_ranges(2 * len(skewed), [skewed, skewed])

    sizes = [place.of(skewed).stop - place.of(skewed).start for place in ranges]
    assert len(ranges) == -(-2 * len(skewed) // 10_000)
    assert sum(sizes) == len(skewed)
    assert max(sizes) < 1.1 * len(skewed) / len(ranges)


def test_few_tokens_are_one_range() -> None:
    assert cut_into_ranges(3, [_series([None, "a", "b"], pl.String)]) == [TokenRange()]


def test_a_column_of_missing_values_alone_can_be_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocabulary, "RANGE_TOKENS", 1)
    only_missing = _series([None], pl.String)

    assert cut_into_ranges(5, [only_missing] * 5) == [TokenRange()]


@settings(deadline=None)
@given(COLUMNS, st.data(), st.integers(1, 4))
def test_the_encoder_is_the_dictionary_of_ids(
    column: tuple[type[pl.DataType], list[Token]], data: st.DataObject, threshold: int
) -> None:
    dtype, tokens = column
    ids = _ids(tokens, dtype, threshold)
    wanted = dict(zip(ids["token"], ids["id"], strict=True))
    requested = data.draw(TEXTS if dtype == pl.String else NUMBERS)

    got = Encoder.of(ids).encode(_series(requested, dtype))

    assert got.dtype.name == "int32"
    assert got.tolist() == [wanted.get(token, 0) for token in requested]


@pytest.mark.parametrize("dtype", [pl.String, pl.UInt32])
def test_the_encoder_takes_no_tokens_and_no_vocabulary(dtype: type[pl.DataType]) -> None:
    seven = pl.Series("token", [7, None], dtype=pl.UInt32).cast(dtype)
    empty = Encoder.of(_ids([7], pl.UInt32, threshold=2).with_columns(pl.col("token").cast(dtype)))

    assert empty.encode(seven).tolist() == [0, 0]
    assert empty.encode(seven.clear()).tolist() == []
    assert (
        Encoder.of(_ids([7], pl.UInt32).with_columns(pl.col("token").cast(dtype)))
        .encode(seven.clear())
        .tolist()
        == []
    )


@settings(deadline=None)
@given(TEXTS, st.integers(1, 4), st.integers(1, 9))
def test_a_vocabulary_file_begins_with_the_unknown_and_its_counts_add_up(
    tmp_path_factory: pytest.TempPathFactory, tokens: list[Token], threshold: int, chunk: int
) -> None:
    dataset = tmp_path_factory.mktemp("data")
    ids = _ids(tokens, pl.String, threshold).sort("id")
    chunks = [ids[start : start + chunk] for start in range(0, ids.height, chunk)]
    unknown = len(tokens) - int(ids["count"].sum())

    shard = write_vocabulary("f", str(dataset), chunks, lambda token: token.fill_null(""), unknown)

    stored = pl.read_parquet(dataset / shard.path)
    assert stored.schema == {"id": pl.Int32, "token": pl.String, "count": pl.Int64}
    assert stored.rows()[0] == (0, None, unknown)
    assert stored.rows()[1:] == [
        (i, token or "", count) for i, (token, count) in enumerate(_oracle(tokens, threshold), start=1)
    ]
    assert stored["count"].sum() == len(tokens)
    assert shard.rows == stored.height
    assert (shard.bytes, shard.sha256) == (
        (dataset / shard.path).stat().st_size,
        storage.file_sha256(str(dataset / shard.path)),
    )


def test_a_vocabulary_file_is_the_same_whether_its_tokens_were_cut_into_ranges(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Row groups of more than a page.
    monkeypatch.setattr(vocabulary, "CHUNK_IDS", 1 << 15)
    numbers = np.arange(100_000)
    ids = pl.DataFrame(
        {"id": (numbers + 1).astype(np.int32), "token": numbers.astype(np.uint32), "count": numbers[::-1] + 1}
    )
    of_ranges = [ids.filter(pl.col("token") % 7 < 3), ids.filter(pl.col("token") % 7 >= 3)]
    paths = [str(tmp_path / f"{number}.arrow") for number in range(2)]
    for path, rows in zip(paths, of_ranges, strict=True):
        write_ids(rows, path)

    def text(values: pl.Series) -> pl.Series:
        return values.cast(pl.String).str.zfill(40)

    in_ranges = write_vocabulary("ranges", str(tmp_path), merge_ids(paths), text, 0)
    whole = write_vocabulary("whole", str(tmp_path), [ids], text, 0)

    metadata = pq.read_metadata(tmp_path / whole.path)
    sizes = [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]
    assert sizes == [(1 << 15) + 1, 1 << 15, 1 << 15, 100_000 - 3 * (1 << 15)]
    assert metadata.row_group(1).column(1).total_uncompressed_size > 1 << 20
    assert in_ranges.sha256 == whole.sha256
