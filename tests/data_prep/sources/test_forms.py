from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.sources.forms import FORMS, classify, merged, not_plain, plain_integers

WRITTEN = {
    "blank": [None, "", "  "],
    "missing": ["NA", " NULL ", "\\N", "nan"],
    "integer": ["7", "0", "-7", "+7", " 7", "007", "123456789012345"],
    "long integer": ["1234567890123456", "-10710025208886284288"],
    "whole decimal": ["7.0", "7.", "1e5", "1.2E3", "-0.0", "9007199254740991.0"],
    "lost digits": ["9007199254740992.0", "1.42e+19", "-1e300"],
    "fraction": ["0.5", ".5", "-7.25", "1e-3"],
    "text": ["a", "1,5", "0x1f", "7 8", "inf", "1_000", "½", "２"],
}


@pytest.mark.parametrize("form", WRITTEN)
def test_each_way_to_write_a_value_is_told_apart(form: str) -> None:
    values = pl.Series(WRITTEN[form], dtype=pl.String)

    assert [FORMS[code] for code in classify(values)] == [form] * len(values)


@pytest.mark.parametrize(("dtype", "exact"), [(pl.Float64, 2**53), (pl.Float32, 2**24)])
def test_floats_are_whole_until_they_keep_no_odd_number(dtype: pl.DataType, exact: int) -> None:
    values = pl.Series([7.0, exact - 1, exact, 0.5, None, float("nan"), float("inf")], dtype=dtype)

    assert [FORMS[code] for code in classify(values)] == [
        "whole decimal",
        "whole decimal",
        "lost digits",
        "fraction",
        "blank",
        "blank",
        "blank",
    ]


@pytest.mark.parametrize(
    ("text", "as_text", "as_number"),
    [
        ("7", "7", "7"),
        ("7.0", "7", "7"),
        (" +7 ", "7", "7"),
        ("-0.0", "0", "0"),
        ("1.2345678E7", "12345678", "12345678"),
        ("9007199254740991.0", "9007199254740991", "9007199254740991"),
        ("9007199254740992.0", "9007199254740992.0", "9007199254740992.0"),
        ("007", "007", "7"),
        ("10710025208886284288", "10710025208886284288", "10710025208886284288"),
        ("7.5", "7.5", "7.5"),
        ("1e5", "1e5", "1e5"),
        ("7.0e99999999", "7.0e99999999", "7.0e99999999"),
        (" a7 ", " a7 ", " a7 "),
        ("NA", "NA", "NA"),
        (" ", None, None),
        (None, None, None),
    ],
)
def test_an_integer_has_one_text_however_it_is_written(
    text: str | None, as_text: str | None, as_number: str | None
) -> None:
    tokens = pl.Series("user", [text, "5"], dtype=pl.String)

    assert plain_integers(tokens, "as written").to_list() == [text, "5"]
    assert plain_integers(tokens, "as text").to_list() == [as_text, "5"]
    assert plain_integers(tokens, "as numbers").to_list() == [as_number, "5"]


@given(st.lists(st.integers(-(2**53) + 1, 2**53 - 1), min_size=1))
def test_integers_and_the_floats_that_equal_them_have_the_same_text(numbers: list[int]) -> None:
    integers = pl.Series([str(number) for number in numbers])
    floats = pl.Series([str(float(number)) for number in numbers])

    # repr writes floats from 10^16 on with an exponent, and those are not exact.
    assert plain_integers(floats, "as text").to_list() == integers.to_list()


@pytest.mark.parametrize("odd", ["007", "7.0", "+7", " 7", "-0"])
def test_tokens_that_no_integer_spells_are_found(odd: str) -> None:
    plain = pl.Series(["7", "-7", "0", "10710025208886284288", "a", "7a", "7.5", None])

    assert not_plain(plain) is None
    assert not_plain(pl.concat([plain, pl.Series([odd])])) == odd


def test_the_first_example_of_a_form_is_kept() -> None:
    first, later = {"user": {"integer": "a"}}, {"user": {"integer": "b", "text": "c"}, "ad": {"text": "d"}}

    assert merged([first, later]) == {"user": {"integer": "a", "text": "c"}, "ad": {"text": "d"}}  # type: ignore[list-item]
    assert np.array_equal(classify(pl.Series([], dtype=pl.String)), [])
