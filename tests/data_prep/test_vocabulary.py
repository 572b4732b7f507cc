from __future__ import annotations

from collections import Counter
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.counting import count_tokens
from data_prep.vocabulary import Encoder, assign_ids, merge_counts, with_unknown

TOKENS = st.lists(st.one_of(st.none(), st.text("abc", min_size=1, max_size=2)), min_size=1, max_size=60)


def _series(tokens: list[str | None]) -> pl.Series:
    return pl.Series("token", tokens, dtype=pl.String)


def _oracle(tokens: list[str | None], threshold: int) -> list[tuple[str | None, int]]:
    kept = [(token, count) for token, count in Counter(tokens).items() if count >= threshold]
    return sorted(kept, key=lambda entry: (-entry[1], entry[0] or ""))


@settings(deadline=None)
@given(TOKENS, st.integers(1, 4), st.integers(0, 60))
def test_ids_follow_counts_then_tokens_however_the_rows_are_cut(
    tokens: list[str | None], threshold: int, cut: int
) -> None:
    parts = [count_tokens(_series(tokens[:cut])), count_tokens(_series(tokens[cut:]))]

    ids = assign_ids(merge_counts(parts), threshold)

    assert ids.select("token", "count").rows() == _oracle(tokens, threshold)
    assert ids["id"].to_list() == list(range(1, ids.height + 1))


@settings(deadline=None)
@given(TOKENS, st.integers(1, 4))
def test_the_counts_of_a_vocabulary_add_up_to_the_training_rows(
    tokens: list[str | None], threshold: int
) -> None:
    ids = assign_ids(count_tokens(_series(tokens)), threshold)

    stored = with_unknown(ids, ids["token"].fill_null(""), len(tokens))

    assert stored["count"].sum() == len(tokens)
    assert stored.row(0)[:2] == (0, None)
    assert stored["id"].to_list() == list(range(stored.height))


@settings(deadline=None)
@given(TOKENS, TOKENS, st.integers(1, 4))
def test_the_encoder_is_the_dictionary_of_ids(
    tokens: list[str | None], others: list[str | None], threshold: int
) -> None:
    ids = assign_ids(count_tokens(_series(tokens)), threshold)
    wanted = dict(zip(ids["token"], ids["id"], strict=True))

    got = Encoder.of(ids).encode(_series(others))

    assert got.tolist() == [wanted.get(token, 0) for token in others]


@pytest.mark.parametrize("dtype", [pl.String, pl.UInt32])
@pytest.mark.parametrize("with_missing", [True, False])
def test_an_encoder_survives_the_disk(tmp_path: Path, dtype: type[pl.DataType], with_missing: bool) -> None:
    tokens = pl.Series("token", [7, 7, 11, 2**32 - 1, *([None] if with_missing else [])], dtype=pl.UInt32)
    encoder = Encoder.of(assign_ids(count_tokens(tokens.cast(dtype)), 1))
    path = str(tmp_path / "field.arrow")

    encoder.save(path)
    loaded = Encoder.load(path)

    asked = pl.Series([7, 5, 2**32 - 1, None, 11], dtype=pl.UInt32).cast(dtype)
    assert loaded.tokens.dtype == dtype
    assert loaded.encode(asked).tolist() == encoder.encode(asked).tolist()
    assert loaded.missing == encoder.missing


def test_nothing_above_the_threshold_leaves_only_the_unknown() -> None:
    ids = assign_ids(count_tokens(_series(["a", "b", None])), 2)

    assert ids.height == 0
    assert Encoder.of(ids).encode(_series(["a", None])).tolist() == [0, 0]
