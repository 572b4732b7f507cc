"""Files of other formats are refused by the format's name, and empty ones by their emptiness."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest

from afm_dist.errors import DataError
from data_prep.sources.criteo import CriteoSource
from data_prep.sources.source import Source
from data_prep.sources.tabular import TabularSource
from data_prep.sources.tabular_columns import ColumnOptions
from tests.data_prep.reading import read

TEXT = b"site,click\n" + b"a,0\nb,1\n" * 50
TABLE = pl.DataFrame({"site": ["a", "b"], "click": [0, 1]})


def tar(content: bytes) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        entry = tarfile.TarInfo("clicks.csv")
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))
    return file.getvalue()


def zipped(content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("clicks.csv", content)
    return file.getvalue()


def written(write: Callable[[io.BytesIO], Any]) -> bytes:
    file = io.BytesIO()
    write(file)
    return file.getvalue()


def tabular(path: Path) -> Source:
    return TabularSource([str(path)], ColumnOptions(label="click"))


def scored(path: Path) -> Source:
    options = ColumnOptions(label=None, categorical=("site",), only_named=True)
    return TabularSource([str(path)], options)


def criteo(path: Path) -> Source:
    return CriteoSource([str(path)])


@pytest.mark.parametrize("opened", [tabular, scored, criteo])
@pytest.mark.parametrize(
    ("content", "named"),
    [
        (bz2.compress(TEXT), "bzip2"),
        (bz2.compress(b""), "bzip2"),
        (lzma.compress(TEXT), "xz"),
        (zipped(TEXT), "zip"),
        (tar(TEXT), "tar"),
        (gzip.compress(tar(TEXT)), "tar archive, compressed with gzip"),
        (TEXT.decode().encode("utf-16"), "UTF-16"),
        (TEXT.decode().encode("utf-16-le"), "UTF-16LE"),
        (TEXT.decode().encode("utf-16-be"), "UTF-16BE"),
        (TEXT.decode().encode("utf-32"), "UTF-32"),
        (gzip.compress(TEXT.decode().encode("utf-16")), "UTF-16 text, compressed with gzip"),
        (written(TABLE.write_ipc), "Arrow"),
        (written(TABLE.write_avro), "Avro"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_format_that_is_not_read_is_named_with_what_to_do(
    tmp_path: Path, opened: Callable[[Path], Source], content: bytes, named: str
) -> None:
    path = tmp_path / "log"
    path.write_bytes(content)

    with pytest.raises(DataError, match=rf"log: .*{named}.*; \w+ it|log: .*{named}.*; write the rows as CSV"):
        opened(path)


@pytest.mark.parametrize("opened", [tabular, scored, criteo])
@pytest.mark.parametrize(
    "content",
    [b"", gzip.compress(b""), gzip.compress(b"") * 2, pa.compress(b"", codec="zstd", asbytes=True)],
    ids=["plain", "gzip", "gzip twice", "zstd"],
)
def test_a_file_without_content_is_empty_however_it_is_compressed(
    tmp_path: Path, opened: Callable[[Path], Source], content: bytes
) -> None:
    path = tmp_path / "log"
    path.write_bytes(content)

    with pytest.raises(DataError, match="log: the file is empty"):
        opened(path)


@pytest.mark.parametrize("opened", [tabular, scored])
@pytest.mark.parametrize("header", [b"si\0te,click\n", b"\0site,click\n", b"\0" * 100 + b"\n"])
def test_a_nul_in_a_header_is_named(tmp_path: Path, opened: Callable[[Path], Source], header: bytes) -> None:
    path = tmp_path / "log"
    path.write_bytes(header + b"a,0\n")

    with pytest.raises(DataError, match=r"log:1: .*NUL"):
        opened(path)


@pytest.mark.parametrize("opened", [tabular, scored])
def test_a_type_that_arrow_does_not_read_is_named(tmp_path: Path, opened: Callable[[Path], Source]) -> None:
    path = tmp_path / "log"
    TABLE.with_columns(pl.col("click").cast(pl.Int128)).write_parquet(path)

    with pytest.raises(DataError, match=r"log: .*64 bits"):
        opened(path)


def test_a_parquet_file_is_no_text_of_criteo(tmp_path: Path) -> None:
    path = tmp_path / "log"
    TABLE.with_columns(site=pl.lit("a\tb")).write_parquet(path)

    with pytest.raises(DataError, match=r"log: a Parquet file; .*--source tabular"):
        criteo(path)


@pytest.mark.parametrize("name", ["ORCID", "PK", "BZh9", "Rar!", "7z", "ARROW1", "ustar"])
def test_a_column_may_have_a_name_that_formats_begin_with(tmp_path: Path, name: str) -> None:
    path = tmp_path / "log"
    path.write_bytes(TEXT.replace(b"site", name.encode(), 1))

    assert len(read(tabular(path)).rows) == 100
