from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from afm_dist.errors import OptionError
from data_prep.protocol import ColumnRule, Protocol
from data_prep.sources.source import RawField
from data_prep.split import ColumnSplit, LastFileSplit, RandomSplit

RAW = (
    RawField(name="I1", kind="numeric"),
    RawField(name="I2", kind="numeric"),
    RawField(name="hour", kind="categorical"),
    RawField(name="C1", kind="categorical"),
)


def _made(*columns: ColumnRule) -> list[tuple[str, str, str]]:
    return [(rule.name, rule.column, rule.spelled) for rule in Protocol(columns=columns).rules(RAW)]


def test_without_rules_numbers_are_logarithms_and_tokens_stay_what_they_are() -> None:
    assert _made() == [
        ("I1", "I1", "log"),
        ("I2", "I2", "log"),
        ("hour", "hour", "token"),
        ("C1", "C1", "token"),
    ]


def test_a_pattern_names_several_columns_and_a_column_may_become_several_fields_or_none() -> None:
    made = _made(
        ColumnRule(column="hour", transform="hour-of-day", field="hour-of-day", time_format="%y%m%d%H"),
        ColumnRule(column="C*", transform=None),
        ColumnRule(column="I*", transform="log-square-bucket"),
        ColumnRule(column="hour", transform="token"),
    )

    assert made == [
        ("I1", "I1", "log-square-bucket"),
        ("I2", "I2", "log-square-bucket"),
        ("hour-of-day", "hour", "hour-of-day(%y%m%d%H)"),
        ("hour", "hour", "token"),
    ]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ([ColumnRule(column="I3", transform="log")], "no column 'I3'; the log has: I1, I2, hour, C1"),
        ([ColumnRule(column="X*", transform=None)], r"no column 'X\*'"),
        ([ColumnRule(column="I1", transform="token")], "'token' cannot read column 'I1', which is numeric"),
        ([ColumnRule(column="C1", transform="log")], "'log' cannot read column 'C1', which is categorical"),
        ([ColumnRule(column="I1", transform="log", field="C1")], "two fields are named 'C1'; rename one"),
        ([ColumnRule(column="I*", transform="log", field="I")], "two fields are named 'I'"),
        ([ColumnRule(column="*", transform=None)], "no field is left"),
    ],
)
def test_rules_that_do_not_fit_the_log_are_refused(columns: list[ColumnRule], message: str) -> None:
    with pytest.raises(OptionError, match=f"preset mine: .*{message}"):
        Protocol(columns=tuple(columns), preset="mine").rules(RAW)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"transform": "cube"}, "column 'x': transform 'cube' is unknown; choose from token"),
        ({"transform": "weekday"}, "transform 'weekday' needs a format"),
        ({"transform": "token", "time_format": "%H"}, "transform 'token' has no use for a format"),
    ],
)
def test_a_rule_that_cannot_work_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        ColumnRule(column="x", **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 0}, "--threshold 0"),
        ({"validation_share": 0.6, "test_share": 0.4}, "leave nothing to train on"),
        ({"test_share": -0.1}, "--test-share -0.1"),
        ({"validation_share": 1.1}, "--validation-share 1.1"),
        ({"rows_per_shard": 0}, "--rows-per-shard 0"),
        ({"max_bad_rows": 2.0}, "--max-bad-rows 2.0"),
        ({"split_by": "last-file"}, "of the last file here; their sum must be 1"),
        ({"split_by": "column", "test_from": "1"}, "--split-column: name the column"),
        ({"split_by": "random"}, "--split-by random: choose from row, last-file, column"),
        ({"test_from": "9"}, "name it with --split-by column --split-column NAME"),
        ({"split_column": "hour"}, "together with --split-by column"),
        ({"split_by": "column", "split_column": "hour"}, "with --validation-from and --test-from"),
    ],
)
def test_options_that_cannot_work_are_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        Protocol(**options)


@pytest.mark.parametrize(
    ("column", "validation_from", "test_from", "message"),
    [
        ("I1", None, "late", "--test-from late: neither a number nor a time .* column 'I1'"),
        ("day", None, "11/04/2024", "--test-from 11/04/2024: neither a number nor a time"),
        ("day", "2024-04-01", "9", "one is a time, the other a number"),
        ("day", "2024-04-01T00:00Z", "2024-04-02", "one has a time zone, the other has none"),
        ("day", "2024-4-10", "2024-04-9", "leave nothing to validate on"),
        ("I1", "10", "9", "leave nothing to validate on"),
        ("hour", "14102100", "14102100", "leave nothing to validate on"),
    ],
)
def test_a_column_that_cannot_split_is_refused(
    column: str, validation_from: str | None, test_from: str | None, message: str
) -> None:
    protocol = Protocol(
        split_by="column", split_column=column, validation_from=validation_from, test_from=test_from
    )

    with pytest.raises(OptionError, match=message):
        protocol.split(1)


def test_a_column_that_splits_becomes_a_field_only_where_it_is_named() -> None:
    protocol = Protocol(split_by="column", split_column="I1", validation_from="9", test_from="10")
    rule = replace(protocol, columns=(ColumnRule(column="I*", transform="log"),))

    assert [rule.name for rule in protocol.rules(RAW)] == ["I2", "hour", "C1"]
    assert [rule.name for rule in rule.rules(RAW)] == ["I1", "I2", "hour", "C1"]
    named = (RawField(name="I1", kind="numeric", named=True), *RAW[1:])
    assert [rule.name for rule in protocol.rules(named)] == ["I1", "I2", "hour", "C1"]
    assert protocol.split(1) == ColumnSplit(column="I1", validation_from="9", test_from="10")


def test_the_last_of_several_files_is_held_out_and_shared_out() -> None:
    protocol = Protocol(split_by="last-file", validation_share=0.5, test_share=0.5, seed=4)

    held_out = RandomSplit(seed=4, validation_share=0.5, test_share=0.5)
    assert protocol.split(24) == LastFileSplit(last_file=23, held_out=held_out)
    with pytest.raises(OptionError, match="--split-by last-file: there is one file"):
        protocol.split(1)


def test_rows_are_split_at_random_otherwise() -> None:
    protocol = Protocol(seed=1, validation_share=0.2, test_share=0.3)

    assert protocol.split(1) == RandomSplit(seed=1, validation_share=0.2, test_share=0.3)
