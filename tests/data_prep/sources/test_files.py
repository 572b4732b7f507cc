from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from afm_dist.errors import DataError, OptionError
from data_prep.sources import files
from data_prep.sources.files import Lines

COMPRESS = {"gzip": gzip.compress, "zstd": lambda data: pa.Codec("zstd").compress(data, asbytes=True)}


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.text("ab", max_size=7), min_size=1, max_size=12),
    st.booleans(),
    st.integers(1, 20),
    st.integers(1, 9),
)
def test_ranges_of_any_size_share_out_every_line_once(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str], newline: bool, size: int, chunk: int
) -> None:
    text = ("\n".join(lines) + ("\n" if newline else "")).encode()
    path = tmp_path_factory.mktemp("log") / "log.txt"
    path.write_bytes(text)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "CHUNK_BYTES", chunk)
        ranges = [
            list(files.lines_of_range(str(path), start, min(len(text), start + size)))
            for start in range(0, len(text), size)
        ]

    pieces = [piece.text for pieces in ranges for piece in pieces]
    assert b"".join(pieces) == text
    assert all(piece.endswith(b"\n") for piece in pieces[:-1])
    for start, of_range in zip(range(0, len(text), size), ranges, strict=True):
        starts = [i for i in range(start, min(len(text), start + size)) if i == 0 or text[i - 1 : i] == b"\n"]
        assert sum(piece.count for piece in of_range) == len(starts)


@settings(max_examples=200, deadline=None)
@given(
    lines=st.lists(st.sampled_from([0, 1, 9, 10, 11, 19, 20, 21, 22, 35, 90]), min_size=1, max_size=8),
    newline=st.booleans(),
    chunk=st.integers(1, 40),
    size=st.sampled_from([7, 30, 10_000]),
)
def test_overlong_lines_are_shortened_and_named_wherever_the_chunks_end(
    tmp_path_factory: pytest.TempPathFactory, lines: list[int], newline: bool, chunk: int, size: int
) -> None:
    written = [(bytes([97 + index]) * 2 + b'"') * 30 for index in range(len(lines))]
    written = [line[:length] for line, length in zip(written, lines, strict=True)]
    text = b"\n".join(written) + (b"\n" if newline else b"")
    path = tmp_path_factory.mktemp("log") / "log.txt"
    path.write_bytes(text)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "CHUNK_BYTES", chunk)
        patch.setattr(files, "MAX_LINE_BYTES", 10)
        got = Lines.concatenate(
            [
                piece
                for start in range(0, len(text), size)
                for piece in files.lines_of_range(str(path), start, min(len(text), start + size))
            ]
        )

    if not newline and not written[-1]:
        written.pop()
    # What is left of a line opens or closes a quote if the whole line does.
    left = [line[:10] + b'"' * (line[10:].count(b'"') % 2) for line in written]
    assert got.text.removesuffix(b"\n") == b"\n".join(left)
    assert got.overlong == tuple(index for index, line in enumerate(written) if len(line) > 10)
    assert got.count == len(written)


def test_overlong_lines_are_counted_from_behind_a_header_that_was_cut_off() -> None:
    lines = Lines(b"header\na\nlong\nb", overlong=(0, 2))

    assert lines.without_first(len(b"header\n")) == Lines(b"a\nlong\nb", overlong=(1,))
    assert lines.without_first(3) == Lines(b"der\na\nlong\nb", overlong=(0, 2))


@pytest.mark.parametrize("compression", COMPRESS)
def test_a_compressed_file_yields_the_same_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compression: files.Compression
) -> None:
    monkeypatch.setattr(files, "CHUNK_BYTES", 10)
    text = b"".join(b"line %d\n" % i for i in range(100)) + b"last"
    path = tmp_path / "whatever.txt"
    path.write_bytes(COMPRESS[compression](text))

    assert files.compression_of(str(path)) == compression
    pieces = list(files.lines_of_compressed(str(path), compression))

    assert b"".join(piece.text for piece in pieces) == text
    assert len(pieces) > 30
    assert all(piece.text.endswith(b"\n") for piece in pieces[:-1])


def test_gzip_members_one_after_the_other_are_one_file(tmp_path: Path) -> None:
    path = tmp_path / "log.gz"
    path.write_bytes(gzip.compress(b"a\nb") + gzip.compress(b"c\nd\n"))

    assert b"".join(piece.text for piece in files.lines_of_compressed(str(path), "gzip")) == b"a\nbc\nd\n"


@pytest.mark.parametrize("compression", COMPRESS)
@pytest.mark.parametrize(
    ("damage", "word"),
    [(lambda data: data[:-20], "truncated"), (lambda data: data[:6] + b"\xff" * 8 + data[14:], "damaged")],
)
def test_a_damaged_compressed_file_is_refused_by_name_and_by_how_far_it_could_be_read(
    tmp_path: Path, damage: Callable[[bytes], bytes], word: str, compression: files.Compression
) -> None:
    path = tmp_path / "log.z"
    text = pl.Series(range(300_000)).hash().cast(pl.String).str.join("\n").item().encode()
    compressed = COMPRESS[compression](text)
    path.write_bytes(damage(compressed))

    read: list[Lines] = []
    with pytest.raises(DataError, match=rf"log\.z: the {compression} file is {word}") as caught:
        read.extend(files.lines_of_compressed(str(path), compression))

    done = int(str(caught.value).partition(" after ")[2].partition(" decompressed")[0].replace(",", ""))
    assert done < len(text)
    assert word == "damaged" or done > 0.9 * len(text)


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    text = files.BYTE_ORDER_MARK + b"a\nb\n"
    plain, packed = tmp_path / "log.txt", tmp_path / "log.gz"
    plain.write_bytes(text)
    packed.write_bytes(gzip.compress(text))

    ranges = [files.lines_of_range(str(plain), start, start + 1) for start in range(len(text))]

    assert b"".join(piece.text for lines in ranges for piece in lines) == b"a\nb\n"
    assert b"".join(piece.text for piece in files.lines_of_compressed(str(packed), "gzip")) == b"a\nb\n"
    assert files.head(str(plain), 2 + 3) == b"a\n"
    assert files.head(str(packed), 2 + 3) == b"a\n"


def test_a_missing_file_and_a_folder_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="absent: no such file; check --input"):
        files.describe(str(tmp_path / "absent"))
    with pytest.raises(DataError, match="not a file"):
        files.describe(str(tmp_path))


def test_files_folders_and_patterns_become_files_in_natural_order(tmp_path: Path) -> None:
    for name in ["day_10.gz", "day_2.gz", "day_1", "DAY_3", "_SUCCESS", ".hidden", "readme.txt"]:
        (tmp_path / name).touch()
    (tmp_path / "day_0").mkdir()

    def names(*patterns: str) -> list[str]:
        given = [f"{tmp_path}/{pattern}" for pattern in patterns]
        return [path.removeprefix(f"{tmp_path}/") for path in files.expand(given)]

    assert names("") == ["DAY_3", "day_1", "day_2.gz", "day_10.gz", "readme.txt"]
    assert names("day_*") == ["day_1", "day_2.gz", "day_10.gz"]
    assert names("day_?.gz") == ["day_2.gz"]
    assert names("[dD][aA]*_[13]") == ["DAY_3", "day_1"]
    assert names("*") == names("")
    assert names("readme.txt", "day_10.gz", "day_2.gz") == ["day_2.gz", "day_10.gz", "readme.txt"]
    with pytest.raises(OptionError, match="day_1 is named twice; its rows would count twice"):
        names("day_1*", "day_1")


def test_order_of_the_command_line_is_kept_where_asked_for(tmp_path: Path) -> None:
    for name in ["b.csv", "a.csv", "day_10", "day_2"]:
        (tmp_path / name).touch()
    given = [f"{tmp_path}/{name}" for name in ("b.csv", "day_*", "a.csv")]

    paths = files.expand(given, as_given=True)

    assert [Path(path).name for path in paths] == ["b.csv", "day_2", "day_10", "a.csv"]


def test_a_name_that_looks_like_a_pattern_is_itself_first(tmp_path: Path) -> None:
    path = tmp_path / "train[1].csv"
    path.touch()

    assert files.expand([str(path)]) == [str(path)]


def test_patterns_are_understood_in_uris_and_in_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["a.csv", "b #1 é.csv"]
    for name in names:
        (tmp_path / name).touch()
    uri = f"file://{tmp_path}"
    monkeypatch.chdir(tmp_path)

    of_folder, of_pattern = files.expand([uri]), files.expand([f"{uri}/*.csv"])

    assert of_folder == of_pattern
    assert of_folder[0] == f"{uri}/a.csv"
    assert [files.describe(path).name for path in of_folder] == names
    assert files.expand(["*.csv"]) == names


@pytest.mark.parametrize(("given", "what"), [("*.csv", "no file matches"), ("", "the folder holds no files")])
def test_a_pattern_or_folder_without_files_is_refused_by_name(tmp_path: Path, given: str, what: str) -> None:
    (tmp_path / "_SUCCESS").touch()

    with pytest.raises(DataError, match=f"{tmp_path}/.*: {what}"):
        files.expand([f"{tmp_path}/{given}"])
