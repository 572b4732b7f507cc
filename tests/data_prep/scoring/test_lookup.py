"""A lookup gives the ids of the vocabulary, in however many pieces it lies."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from afm_dist import storage
from afm_dist.dataset.manifest import Field, Manifest
from afm_dist.errors import DataError
from data_prep import vocabulary
from data_prep.scoring import lookup
from data_prep.scoring.lookup import Lookup, write_lookup
from data_prep.sources.avazu import AvazuSource
from data_prep.sources.criteo import CriteoSource
from data_prep.sources.source import Source
from data_prep.sources.tabular import TabularSource
from data_prep.transforms import FieldRule
from tests.small_dataset import write_shard

RULE = FieldRule(name="ad", column="ad", transform="token")
# Reads no file here, only tokens.
SOURCES: dict[str, Source] = {
    "tabular": TabularSource.__new__(TabularSource),
    "criteo": CriteoSource.__new__(CriteoSource),
    "avazu": AvazuSource.__new__(AvazuSource),
}
TEXTS = {
    "tabular": ["", "a", "ü", "zz", "a b", *(f"u{n}" for n in range(500))],
    "criteo": ["", *(f"{n * 2654435761 % 2**32:08x}" for n in range(500))],
    "avazu": ["", "ü", "14102100", "-1", *(f"{n * 7919:x}" for n in range(500))],
}


def write(folder: Path, texts: list[str]) -> Manifest:
    """A vocabulary of these tokens, ids from 1 in their order."""
    columns = {"id": np.arange(len(texts) + 1, dtype=np.int32), "token": [None, *texts]}
    columns["count"] = np.ones(len(texts) + 1, dtype=np.int64)
    file = write_shard(str(folder), "vocabulary/ad.parquet", columns)
    field = Field(name="ad", kind="categorical", cardinality=len(texts) + 1)
    return Manifest(location=str(folder), label="click", fields=(field,), splits={}, vocabulary={"ad": file})


@pytest.mark.parametrize("with_missing", [True, False])
@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize(("at_once", "range_tokens"), [(10_000, 10_000), (64, 10_000), (64, 120)])
def test_ids_of_a_lookup_are_those_of_the_vocabulary(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    with_missing: bool,
    at_once: int,
    range_tokens: int,
) -> None:
    monkeypatch.setattr(lookup, "TEXTS_AT_ONCE", at_once)
    monkeypatch.setattr(lookup, "READ_ROWS", 100)
    monkeypatch.setattr(vocabulary, "RANGE_TOKENS", range_tokens)
    source, known = SOURCES[kind], TEXTS[kind][not with_missing :: 2]
    ids = {text: number for number, text in enumerate(known, start=1)}

    assert write_lookup(write(tmp_path, known), RULE, source, f"{tmp_path}/ad.arrow") == len(known)

    requested = source.tokens_of(pl.Series(TEXTS[kind])).sort()
    found = Lookup(f"{tmp_path}/ad.arrow").encode(requested)
    assert found.tolist() == [ids.get(text, 0) for text in source.token_text(requested).to_list()]


@pytest.mark.parametrize(
    "tokens", [pl.Series(range(1_000)), pl.Series([f"a long token {n:04d}" for n in range(1_000)])]
)
def test_what_waits_of_a_chunk_holds_nothing_else_of_it(tokens: pl.Series) -> None:
    chunk = pl.DataFrame({"id": pl.Series(range(1_000), dtype=pl.Int32), "token": tokens})

    few = lookup._copied(chunk, slice(500, 510))

    assert few.equals(chunk[500:510])
    for column in few.to_arrow().columns:
        assert sum(buffer.size for chunk in column.chunks for buffer in chunk.buffers() if buffer) < 1_000


def test_ranges_are_cut_without_holding_the_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocabulary, "RANGE_TOKENS", 120)
    given = []
    cut = vocabulary.cut_into_ranges
    monkeypatch.setattr(
        vocabulary, "cut_into_ranges", lambda n, sampled: given.append(sampled) or cut(n, sampled)
    )

    write_lookup(write(tmp_path, TEXTS["criteo"]), RULE, SOURCES["criteo"], f"{tmp_path}/ad.arrow")

    assert len(given) == 1
    assert not isinstance(given[0], list)


@pytest.mark.parametrize("kind", SOURCES)
def test_texts_of_tokens_are_read_back(kind: str) -> None:
    source, texts = SOURCES[kind], pl.Series(TEXTS[kind])

    assert source.token_text(source.tokens_of(texts)).to_list() == texts.to_list()


@pytest.mark.parametrize(("known", "ids"), [([], [0, 0]), ([""], [1, 0]), (["0000000a"], [0, 1])])
def test_vocabulary_of_one_token_or_none_knows_no_other(
    tmp_path: Path, known: list[str], ids: list[int]
) -> None:
    assert write_lookup(write(tmp_path, known), RULE, SOURCES["criteo"], f"{tmp_path}/ad.arrow") == len(known)

    tokens = SOURCES["criteo"].tokens_of(pl.Series(["", "0000000a"]))
    assert Lookup(f"{tmp_path}/ad.arrow").encode(tokens).tolist() == ids


@pytest.mark.parametrize("texts", [["0000000a", "no token"], ["0000000a", "0000000a"], ["123456789"]])
def test_vocabulary_of_another_source_is_refused_by_name(tmp_path: Path, texts: list[str]) -> None:
    with pytest.raises(DataError, match=r"vocabulary/ad\.parquet"):
        write_lookup(write(tmp_path, texts), RULE, SOURCES["criteo"], f"{tmp_path}/ad.arrow")

    assert storage.list_names(str(tmp_path)) == ["vocabulary"]


def test_vocabulary_that_holds_no_numbers_is_refused_for_a_field_of_numbers(tmp_path: Path) -> None:
    rule = FieldRule(name="ad", column="I1", transform="log-square-bucket")

    with pytest.raises(DataError, match=r"ad\.parquet: not a vocabulary of this model"):
        write_lookup(write(tmp_path, ["3", "x"]), rule, SOURCES["criteo"], f"{tmp_path}/ad.arrow")
