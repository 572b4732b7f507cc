"""How a description is spelled."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from afm_dist.report import dataset_words as words
from tests.report.example_description import categorical_field, example_description


@pytest.mark.parametrize(
    ("share", "shown"),
    [
        (None, "–"),
        (0.0, "0"),
        (0.0004, "< 0.1"),
        (0.0005001, "0.1"),
        (0.1234, "12.3"),
        (0.9994, "99.9"),
        (0.9996, "> 99.9"),
        (1.0, "100"),
    ],
)
def test_a_percentage_says_none_and_all_only_when_it_is(share: float | None, shown: str) -> None:
    assert words.percent(share).replace("\xa0", " ") == shown


@pytest.mark.parametrize(
    ("share", "shown"), [(None, "–"), (0.25546, "25.55 %"), (0.00012345, "0.0123 %"), (0.0, "0 %")]
)
def test_rare_labels_keep_three_digits(share: float | None, shown: str) -> None:
    assert words.label_rate(share).replace("\xa0", " ") == shown


@pytest.mark.parametrize(
    ("token", "shown"),
    [
        ("", "(missing)"),
        ("(missing)", '"(missing)"'),
        ("05db9164", "05db9164"),
        (" a", '" a"'),
        ("a b", "a b"),
        ("tab\tline\n", "tab\\tline\\n"),
        ("\x1b[31m", "\\x1b[31m"),
        ("\u202eabc", "\\u202eabc"),
        ("été 東京", "été 東京"),
        ("https://example.org/a/very/long/address", "https://exa…ng/address"),
    ],
)
def test_a_token_is_shown_as_it_is_as_far_as_it_can_be_seen(token: str, shown: str) -> None:
    assert words.token(token, 22) == shown


@given(st.text(max_size=200), st.integers(12, 40))
def test_a_shown_token_is_short_printable_and_never_taken_for_the_missing_one(
    token: str, length: int
) -> None:
    shown = words.token(token, length)

    assert len(shown) <= length
    assert shown.isprintable() and shown
    assert (shown == words.MISSING) == (token == "")


def test_what_a_field_is_made_of_is_said_only_where_its_name_does_not() -> None:
    field = categorical_field(1)

    assert words.made_of(field) == ""
    assert words.made_of(replace(field, column="", transform="")) == ""
    assert words.made_of(replace(field, column="other")) == "other"
    assert words.made_of(replace(field, transform="log-square-bucket")) == "log-square-bucket"
    assert words.made_of(categorical_field(5)) == "weekday(%y%m%d%H) of hour"


def test_the_sentence_counts_rows_fields_and_ids() -> None:
    example = example_description()
    ids = f"{example.ids:,}"

    assert words.sentence(example) == (
        f"45,840,000 rows, 26 categorical fields with {ids} ids and 13 numeric fields"
    )
    assert words.sentence(replace(example, categorical=(), numeric=example.numeric[:1])) == (
        "45,840,000 rows, 1 numeric field"
    )
