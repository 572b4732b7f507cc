from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.sources.criteo_lines import parse, reason
from tests.data_prep.raw_logs import criteo_text, read_criteo_line

INTEGERS = st.one_of(
    st.just(""),
    st.integers(-(10**12), 10**12).map(str),
    st.sampled_from(
        ["0", "-3", "007", "12345678", "123456789", "-12345678", "-", "+1", "1.5", " 1", "1a", "½"]
    ),
)
TOKENS = st.one_of(
    st.just(""),
    st.integers(0, 2**32 - 1).map(lambda value: f"{value:08x}"),
    st.sampled_from(
        ["0000000", "68FD1E64", "68fd1e6g", "68fd1e6o", "68fd1e640", "+8fd1e64", "@`/:{|}~", "éééé"]
    ),
)
GOOD_LINES = st.sampled_from(criteo_text(20).splitlines())


@st.composite
def lines(draw: st.DrawFn) -> str:
    """A good line, most often with something put into one field."""
    fields = draw(GOOD_LINES).split("\t")
    change = draw(st.sampled_from(["none", "label", "integer", "token", "fewer", "more"]))
    if change == "label":
        fields[0] = draw(st.sampled_from(["0", "1", "2", "", "yes", "01", "-1"]))
    elif change == "integer":
        fields[draw(st.integers(1, 13))] = draw(INTEGERS)
    elif change == "token":
        fields[draw(st.integers(14, 39))] = draw(TOKENS)
    elif change == "fewer":
        fields = fields[: draw(st.integers(0, 39))]
    elif change == "more":
        fields.append("x")
    return "\t".join(fields)


@settings(max_examples=150, deadline=None)
@given(st.lists(lines(), min_size=1, max_size=12), st.booleans(), st.sampled_from(["\n", "\r\n"]))
def test_parse_agrees_with_plain_python_on_any_mix_of_good_and_bad_lines(
    written: list[str], final_newline: bool, newline: str
) -> None:
    text = newline.join(written) + (newline if final_newline or not written[-1] else "")

    parsed = parse(text.encode())

    wanted = {i: row for i, line in enumerate(written) if (row := read_criteo_line(line)) is not None}
    assert parsed.lines == len(written)
    assert parsed.good.tolist() == list(wanted)
    assert [index for index, _, _ in parsed.bad] == [i for i in range(len(written)) if i not in wanted]
    columns = [parsed.labels.astype(float).tolist()]
    columns += [_with_none(values.tolist(), missing) for values, missing in parsed.integers]
    columns += [
        _with_none([f"{v:08x}" for v in values.tolist()], missing) for values, missing in parsed.tokens
    ]
    assert [list(row) for row in zip(*columns, strict=True)] == list(wanted.values())


def _with_none(values: list, missing: np.ndarray) -> list:
    return [None if gone else value for value, gone in zip(values, missing, strict=True)]


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        (0, "yes", "label 'yes' is not 0 or 1"),
        (2, "x", "I2 'x' is not an integer"),
        (16, "XYZ", "C3 'XYZ' is not 8 lower-case hex digits"),
    ],
)
def test_reason_names_the_field_and_the_value(field: int, value: str, expected: str) -> None:
    fields = criteo_text(1).rstrip("\n").split("\t")
    fields[field] = value

    assert reason("\t".join(fields).encode()) == expected


def test_reason_counts_the_fields() -> None:
    assert reason(b"0\t1") == "2 fields instead of 40"
