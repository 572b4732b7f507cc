from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from afm_dist.errors import DataError
from data_prep.sources import files, text_log
from data_prep.sources.criteo import CriteoSource
from tests.data_prep.raw_logs import criteo_text, read_criteo_line
from tests.data_prep.reading import read

IN_A_FIELD = st.characters(codec="utf-8", exclude_characters="\t\n\r\0")
INTEGERS = st.one_of(
    st.just(""),
    st.integers(-(10**12), 10**12).map(str),
    st.integers(10**290, 10**310).map(str),
    st.text("-+0123456789:/ ", max_size=9),
    st.text(IN_A_FIELD, max_size=9),
    st.sampled_from(["-0", "007", "12345678", "123456789", "-1234567", "-12345678", "-", "1.5", "1e3", "½"]),
)
TOKENS = st.one_of(
    st.just(""),
    st.integers(0, 2**32 - 1).map(lambda value: f"{value:08x}"),
    st.text("0123456789abcdefgoABF/:`@", min_size=7, max_size=9),
    st.text(IN_A_FIELD, min_size=1, max_size=9),
    st.sampled_from(["68FD1E64", "68fd1e6g", "68fd1e640", "+8fd1e64", "@`/:{|}~", "éééé", "€€00"]),
)
GOOD_LINES = st.sampled_from(criteo_text(20).splitlines())


@st.composite
def lines(draw: st.DrawFn) -> str:
    """A good line, most often with something put into one field."""
    fields = draw(GOOD_LINES).split("\t")
    change = draw(st.sampled_from(["none", "label", "integer", "token", "fewer", "more", "NUL"]))
    if change == "label":
        fields[0] = draw(st.sampled_from(["0", "1", "2", "", "yes", "01", "-1", "100000000", "é"]))
    elif change == "integer":
        fields[draw(st.integers(1, 13))] = draw(INTEGERS)
    elif change == "token":
        fields[draw(st.integers(14, 39))] = draw(TOKENS)
    elif change == "fewer":
        fields = fields[: draw(st.integers(0, 39))]
    elif change == "more":
        fields.insert(draw(st.integers(0, 40)), draw(TOKENS))
    elif change == "NUL":
        fields[draw(st.integers(0, 39))] = draw(st.sampled_from(["\0", "1\0", "68fd1e6\0", 8 * "\0"]))
    return "\t".join(fields)


def _source(path: Path, written: list[str], *, newline: str = "\n", at_end: str = "\n") -> CriteoSource:
    path.write_bytes((newline.join(written) + at_end).encode())
    return CriteoSource([str(path)])


@settings(max_examples=50, deadline=None)
@given(
    written=st.lists(lines(), min_size=1, max_size=8),
    newline=st.sampled_from(["\n", "\r\n"]),
    final_newline=st.booleans(),
    block_bytes=st.integers(300, 5_000),
    chunk_bytes=st.sampled_from([7, 500, 1 << 20]),
    part_bytes=st.sampled_from([1, 1_000, 1 << 20]),
)
def test_any_mix_of_good_and_bad_lines_reads_as_plain_python_reads_it_however_it_is_cut(
    tmp_path_factory: pytest.TempPathFactory,
    written: list[str],
    newline: str,
    final_newline: bool,
    block_bytes: int,
    chunk_bytes: int,
    part_bytes: int,
) -> None:
    written = [criteo_text(1).rstrip("\n"), *written]
    path = tmp_path_factory.mktemp("log") / "train.txt"
    at_end = newline if final_newline or not written[-1] else ""
    path.write_bytes((newline.join(written) + at_end).encode())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "CHUNK_BYTES", chunk_bytes)
        patch.setattr(text_log, "PART_BYTES", part_bytes)
        got = read(CriteoSource([str(path)], block_bytes=block_bytes))

    wanted = {i: row for i, line in enumerate(written) if (row := read_criteo_line(line)) is not None}
    assert got.numbers == list(wanted)
    assert got.rows == list(wanted.values())
    assert [bad.line - 1 for bad in got.rejected] == [i for i in range(len(written)) if i not in wanted]
    for bad in got.rejected:
        assert bad.reason
        assert written[bad.line - 1].encode().startswith(bad.text.encode())


def test_the_cuts_of_that_property_make_many_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "train.txt").write_text(criteo_text(50))
    monkeypatch.setattr(files, "CHUNK_BYTES", 500)
    monkeypatch.setattr(text_log, "PART_BYTES", 1)

    assert read(CriteoSource([str(tmp_path / "train.txt")])).pieces > 20


@pytest.mark.parametrize(
    ("field", "start", "allowed"),
    [
        (1, b"12", b"0123456789"),
        (1, b"", b"0123456789"),
        (14, b"68fd1e6", b"0123456789abcdef"),
        (14, b"", b""),
    ],
)
def test_every_byte_is_told_from_a_digit(tmp_path: Path, field: int, start: bytes, allowed: bytes) -> None:
    others = [byte for byte in range(256) if bytes([byte]) not in b"\0\t\n"]
    fields = criteo_text(1).rstrip("\n").encode().split(b"\t")
    for at_the_front in (False, True):
        lines = []
        for byte in others:
            fields[field] = bytes([byte]) + start if at_the_front else start + bytes([byte])
            lines.append(b"\t".join(fields) + b"\n")
        path = tmp_path / f"{at_the_front}.txt"
        path.write_bytes(b"".join(lines))

        got = read(CriteoSource([str(path)]))

        # A sign may stand before a digit.
        wanted = allowed + (b"-" if field == 1 and at_the_front and start else b"")
        assert [others[number] for number in got.numbers] == sorted(wanted)


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        (0, "yes", "label 'yes' is not 0 or 1"),
        (0, "", "label '' is not 0 or 1"),
        (2, "x", "I2 'x' is not an integer"),
        (2, "1.5", "I2 '1.5' is not an integer"),
        (2, "9" * 400, f"I2 '{'9' * 40}' is not an integer"),
        (16, "XYZ", "C3 'XYZ' is not 8 lower-case hex digits"),
        (16, "68fd1e641", "C3 '68fd1e641' is not 8 lower-case hex digits"),
        (5, "1\0", "a NUL byte at character"),
        (39, "68fd1e64\textra", "41 fields instead of 40"),
    ],
)
def test_the_reason_names_the_field_and_the_value(
    tmp_path: Path, field: int, value: str, expected: str
) -> None:
    good, bad = criteo_text(2).splitlines()
    fields = bad.split("\t")
    fields[field] = value

    got = read(_source(tmp_path / "train.txt", [good, "\t".join(fields), good]))

    assert got.numbers == [0, 2]
    ((line, reason),) = got.reasons
    assert line == 2
    assert reason.startswith(expected)


def test_the_reason_counts_the_fields(tmp_path: Path) -> None:
    (good,) = criteo_text(1).splitlines()

    got = read(_source(tmp_path / "train.txt", [good, "0\t1", ""]))

    assert got.reasons == [(2, "2 fields instead of 40"), (3, "1 fields instead of 40")]


def test_the_smallest_and_largest_token_are_no_missing_one(tmp_path: Path) -> None:
    fields = criteo_text(1).rstrip("\n").split("\t")
    fields[14:17] = ["00000000", "ffffffff", ""]

    (row,) = read(_source(tmp_path / "train.txt", ["\t".join(fields)])).rows

    assert row[14:17] == ["00000000", "ffffffff", None]


def test_another_format_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"words\.txt:1: no tab in the first line"):
        _source(tmp_path / "words.txt", ["a,b", "1,2"])
