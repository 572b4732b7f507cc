from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from afm_dist.errors import DataError
from data_prep.sources import files


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

    pieces = [piece for pieces in ranges for piece in pieces]
    assert b"".join(pieces) == text
    assert all(piece.endswith(b"\n") for piece in pieces[:-1])
    for start, pieces in zip(range(0, len(text), size), ranges, strict=True):
        starts = [i for i in range(start, min(len(text), start + size)) if i == 0 or text[i - 1 : i] == b"\n"]
        assert len(b"".join(pieces).splitlines()) == len(starts)


def test_gzip_yields_the_same_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "CHUNK_BYTES", 10)
    text = b"".join(b"line %d\n" % i for i in range(100)) + b"last"
    path = tmp_path / "log.gz"
    path.write_bytes(gzip.compress(text))

    pieces = list(files.lines_of_gzip(str(path)))

    assert b"".join(pieces) == text
    assert all(piece.endswith(b"\n") for piece in pieces[:-1])


@pytest.mark.parametrize(
    ("damage", "word"), [(lambda d: d[:-20], "truncated"), (lambda d: d[:30] + b"xx" + d[32:], "gzip")]
)
def test_a_damaged_gzip_file_is_refused_by_name(tmp_path: Path, damage, word: str) -> None:
    path = tmp_path / "log.gz"
    path.write_bytes(damage(gzip.compress(bytes(range(256)) * 50)))

    with pytest.raises(DataError, match=rf"log\.gz: .*{word}"):
        list(files.lines_of_gzip(str(path)))


def test_a_missing_file_and_a_folder_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="absent: no such file; check --input"):
        files.describe(str(tmp_path / "absent"))
    with pytest.raises(DataError, match="not a file"):
        files.describe(str(tmp_path))
