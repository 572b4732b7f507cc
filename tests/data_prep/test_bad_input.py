"""What is wrong with real downloads, and what becomes of it, in every format of text."""

from __future__ import annotations

import gzip
import json
import random
import re
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow as pa
import pytest

from afm_dist import storage
from afm_dist.dataset.manifest import Manifest
from afm_dist.errors import DataError
from data_prep import parse, rejected
from data_prep.pipeline import prepare
from data_prep.protocol import ColumnRule, Protocol
from data_prep.sources import csv_table, files, text_log
from data_prep.sources.avazu import AvazuSource
from data_prep.sources.criteo import CriteoSource
from data_prep.sources.source import Source
from data_prep.sources.tabular import TabularSource
from data_prep.sources.tabular_columns import ColumnOptions
from tests.data_prep.prepared import decoded
from tests.data_prep.raw_logs import Row, avazu_text, criteo_text
from tests.data_prep.reading import read


@dataclass(frozen=True, kw_only=True)
class Format:
    """A format, and a good log in it.

    Attributes:
        open: From the names of files.
        header: Its first line; empty: it has none.
        lines: Of a small good log, without the header.
        delimiter: Between fields.
        label: Which field is the label.
        keep: The columns that the tests prepare; the others cost time.
    """

    open: Callable[[list[str]], Source]
    header: str
    lines: list[str]
    delimiter: str
    label: int
    keep: str

    def text(self, lines: list[str] | None = None, *, newline: str = "\n") -> bytes:
        first = [self.header] if self.header else []
        written = self.lines if lines is None else lines
        return "".join(line + newline for line in [*first, *written]).encode("utf-8", "surrogateescape")

    def with_field(self, line: str, field: int, value: str) -> str:
        fields = line.split(self.delimiter)
        fields[field] = value
        return self.delimiter.join(fields)

    @property
    def first_line(self) -> int:
        return 2 if self.header else 1


def _tabular(paths: list[str]) -> TabularSource:
    return TabularSource(paths, ColumnOptions(label="click", numeric=("price",)))


FORMATS = {
    "criteo": Format(
        open=CriteoSource,
        header="",
        lines=criteo_text(60).splitlines(),
        delimiter="\t",
        label=0,
        keep="[IC]1",
    ),
    "avazu": Format(
        open=AvazuSource,
        header=avazu_text(0).strip(),
        lines=avazu_text(60).splitlines()[1:],
        delimiter=",",
        label=1,
        keep="site_*",
    ),
    "csv": Format(
        open=_tabular,
        header="click,ad,price,site",
        lines=[f"{i % 3 == 0:d},a{i % 7},{i / 4},é{i % 2}" for i in range(60)],
        delimiter=",",
        label=0,
        keep="*",
    ),
}
PACK: dict[str, Callable[[bytes], bytes]] = {
    "plain": lambda data: data,
    "gzip": gzip.compress,
    "zstd": lambda data: pa.compress(data, "zstd", asbytes=True),
}

every_format = pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)
every_packing = pytest.mark.parametrize("pack", PACK.values(), ids=PACK)


def _source(form: Format, path: Path, content: bytes) -> Source:
    path.write_bytes(content)
    return form.open([str(path)])


def _protocol(form: Format, source: Source, *, max_bad_rows: float = 0.1) -> Protocol:
    """Everything for training, every token kept, few columns."""
    wanted = [f.name for f in source.fields if Path(f.name).match(form.keep)]
    dropped = tuple(ColumnRule(column=f.name, transform=None) for f in source.fields if f.name not in wanted)
    return Protocol(threshold=1, validation_share=0, test_share=0, columns=dropped, max_bad_rows=max_bad_rows)


def _prepare(form: Format, source: Source, folder: Path) -> Manifest:
    return prepare(source, str(folder), _protocol(form, source))


def _rejected(manifest: Manifest) -> list[dict[str, Any]]:
    folder = storage.join(manifest.location, "rejected")
    return [
        json.loads(line)
        for name in storage.list_names(folder)
        for line in storage.read_bytes(storage.join(folder, name)).splitlines()
    ]


def _good(form: Format, folder: Path) -> list[Row]:
    """The rows of the good log."""
    folder.mkdir()
    return decoded(_prepare(form, _source(form, folder / "good", form.text()), folder / "data"), "train")


def _fields_spoiled(*changes: tuple[int, str]) -> Callable[[Format, str], str]:
    def spoil(form: Format, line: str) -> str:
        for field, value in changes:
            line = form.with_field(line, field, value)
        return line

    return spoil


def _one_more(form: Format, line: str) -> str:
    return line + form.delimiter + "x"


def _only_one(form: Format, line: str) -> str:
    return line.partition(form.delimiter)[0]


# Surrogates stand for the bytes of broken UTF-8.
MALFORMED = [
    *((name, _one_more, rf"{n + 1} fields instead of {n}") for name, n in (("criteo", 40), ("avazu", 24))),
    ("csv", _one_more, "5 fields instead of 4"),
    *((name, _only_one, "1 fields instead of ") for name in FORMATS),
    *(
        (name, _fields_spoiled((form.label, value)), rf"(label|click) ('{value}'|missing) is not 0 or 1")
        for name, form in FORMATS.items()
        for value in ("2", "", "yes")
    ),
    ("criteo", _fields_spoiled((1, "1.5")), "I1 '1.5' is not an integer"),
    ("csv", _fields_spoiled((2, "many")), "price 'many' is not a finite number"),
    ("csv", _fields_spoiled((2, "inf")), "price 'inf' is not a finite number"),
    ("criteo", _fields_spoiled((14, "1\0")), "a NUL byte at character"),
    ("avazu", _fields_spoiled((5, "1\0")), "a NUL byte at character"),
    ("csv", _fields_spoiled((1, "a\0")), r"ad 'a\\x00' is not UTF-8 text without NUL bytes"),
    ("criteo", _fields_spoiled((14, "caf\udce9")), r"C1 'caf\\\\xe9' is not 8 lower-case hex digits"),
    ("avazu", _fields_spoiled((5, "caf\udce9")), r"site_id 'caf\\\\xe9' is not UTF-8 text"),
    ("csv", _fields_spoiled((1, "caf\udce9")), r"ad 'caf\\\\xe9' is not UTF-8 text"),
    ("csv", _fields_spoiled((2, "\udce9")), r"price '\\\\xe9' is not a finite number"),
]


@pytest.mark.parametrize(("name", "spoil", "reason"), MALFORMED)
def test_a_malformed_row_is_left_out_counted_and_kept_with_its_place_and_reason(
    tmp_path: Path,
    here: pytest.MonkeyPatch,
    name: str,
    spoil: Callable[[Format, str], str],
    reason: str,
) -> None:
    form = FORMATS[name]
    lines = [*form.lines[:20], spoil(form, form.lines[7]), *form.lines[20:]]

    made = _prepare(form, _source(form, tmp_path / "log", form.text(lines)), tmp_path / "data")

    (kept,) = _rejected(made)
    assert (kept["file"], kept["line"]) == (str(tmp_path / "log"), 20 + form.first_line)
    assert re.search(reason, kept["reason"])
    assert kept["text"]
    assert (made.facts["rows_read"], made.facts["rows_rejected"]) == (61, 1)
    assert decoded(made, "train") == _good(form, tmp_path / "good")


@pytest.mark.parametrize(
    ("name", "packing"),
    [("criteo", "plain"), ("criteo", "gzip"), ("avazu", "plain"), ("csv", "plain"), ("csv", "zstd")],
)
def test_a_row_of_a_hundred_megabytes_is_kept_shortened_in_little_memory(
    tmp_path: Path, name: str, packing: str
) -> None:
    form, pack = FORMATS[name], PACK[packing]
    start = form.lines[7].rpartition(form.delimiter)[0] + form.delimiter
    lines = [*form.lines[:20], start + "x" * 100_000_000, *form.lines[20:]]
    source = _source(form, tmp_path / "log", pack(form.text(lines)))
    del lines

    tracemalloc.start()
    got = read(source)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    (bad,) = got.rejected
    assert (bad.line, bad.reason) == (20 + form.first_line, "the line is longer than 1048576 bytes")
    assert bad.text == (start + "x" * files.MAX_REJECTED_BYTES)[: len(bad.text)]
    assert files.MAX_REJECTED_BYTES // 2 < len(bad.text) <= files.MAX_REJECTED_BYTES
    assert len(got.rows) == 60
    assert got.numbers == [n for n in range(61) if n != 20]
    assert peak < 30_000_000


@every_format
def test_more_malformed_rows_than_allowed_stop_the_job_and_name_the_first_ten(
    tmp_path: Path, here: pytest.MonkeyPatch, form: Format
) -> None:
    source = _source(form, tmp_path / "log", form.text(form.lines + ["broken"] * 12))

    with pytest.raises(DataError) as caught:
        prepare(source, str(tmp_path / "data"), _protocol(form, source, max_bad_rows=0.16))

    message = str(caught.value)
    assert "12 of 72 rows are malformed, more than --max-bad-rows 0.16 allows" in message
    assert "\n" not in message
    named = [f"log:{60 + form.first_line + n} 1 fields instead of" in message for n in range(12)]
    assert named == [True] * 10 + [False] * 2
    assert len(list((tmp_path / "data" / "rejected").iterdir())) == 1
    made = prepare(source, str(tmp_path / "data"), _protocol(form, source, max_bad_rows=0.17))
    assert made.facts["rows_rejected"] == 12


def test_many_malformed_rows_are_kept_in_several_files(tmp_path: Path, here: pytest.MonkeyPatch) -> None:
    form = FORMATS["criteo"]
    here.setattr(rejected, "REJECTED_PER_FILE", 4)
    lines = [line for good in form.lines[:10] for line in (good, f"broken {good}")]
    source = _source(form, tmp_path / "log", form.text(lines))

    made = prepare(source, str(tmp_path / "data"), _protocol(form, source, max_bad_rows=0.5))

    assert storage.list_names(storage.join(made.location, "rejected")) == [
        f"part-00000-{number:03d}.jsonl" for number in range(3)
    ]
    assert [kept["line"] for kept in _rejected(made)] == list(range(2, 21, 2))
    assert [kept["text"] for kept in _rejected(made)] == lines[1::2]


@every_format
def test_a_log_without_a_single_label_says_what_stands_there(
    tmp_path: Path, here: pytest.MonkeyPatch, form: Format
) -> None:
    lines = [form.with_field(line, form.label, "yes") for line in form.lines]
    source = _source(form, tmp_path / "log", form.text(lines))

    with pytest.raises(
        DataError, match=rf"not one of 60 rows has a label of 0 or 1: column '{source.label}' holds 'yes'"
    ):
        _prepare(form, source, tmp_path / "data")


def test_a_log_of_malformed_rows_alone_is_given_up_early(tmp_path: Path, here: pytest.MonkeyPatch) -> None:
    form = FORMATS["criteo"]
    here.setattr(parse, "HOPELESS_ROWS", 100)
    here.setattr(text_log, "PART_BYTES", 1_000)
    here.setattr(files, "CHUNK_BYTES", 1_000)
    source = _source(form, tmp_path / "log", b"a\tb\n" * 100_000)

    with pytest.raises(DataError, match=r"every one of \d{3} rows is malformed; the first: .*log:1 2 fields"):
        _prepare(form, source, tmp_path / "data")


@every_format
@pytest.mark.parametrize("packing", ["gzip", "zstd"])
@pytest.mark.parametrize("copies", [1, 200])
def test_a_truncated_file_is_refused_by_name_and_by_how_far_it_could_be_read(
    tmp_path: Path, here: pytest.MonkeyPatch, form: Format, packing: str, copies: int
) -> None:
    generator = random.Random(0)
    lines = [line for _ in range(copies) for line in generator.sample(form.lines, len(form.lines))]
    packed = PACK[packing](form.text(lines))

    with pytest.raises(
        DataError, match=rf"log: the {packing} file is truncated after [\d,]+ decompressed bytes; fetch it"
    ) as caught:
        _prepare(form, _source(form, tmp_path / "log", packed[: -len(packed) // 20]), tmp_path / "data")

    assert "\n" not in str(caught.value)
    assert not (tmp_path / "data" / "manifest.json").exists()


@every_format
@every_packing
def test_a_file_without_rows_is_refused_alone_and_passed_over_among_others(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    form: Format,
    pack: Callable[[bytes], bytes],
) -> None:
    (tmp_path / "log").write_bytes(form.text())
    (tmp_path / "empty").touch()
    without_rows = {
        "empty": "the file is empty",
        "packed": "the file is empty",
        "mark": "the file is empty",
    }
    (tmp_path / "packed").write_bytes(pack(b""))
    (tmp_path / "mark").write_bytes(pack(files.BYTE_ORDER_MARK))
    if form.header:
        for name, content in {"header": form.text([]), "cut": form.text([]).rstrip(b"\n")}.items():
            (tmp_path / name).write_bytes(pack(content))
            without_rows[name] = "the file has a header and no rows"

    for name, message in without_rows.items():
        path = str(tmp_path / name)
        with pytest.raises(DataError, match=f"{path}: {message}; check how it was downloaded"):
            form.open([path])
        source = form.open([path, str(tmp_path / "log"), path])

        assert source.paths == (str(tmp_path / "log"),)
        assert len(read(source).rows) == 60
        assert capsys.readouterr().err.count(f"{path}: {message}; passed over") == 2


@every_format
@every_packing
@pytest.mark.parametrize("mark", [b"", files.BYTE_ORDER_MARK], ids=["unmarked", "marked"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"], ids=["LF", "CRLF"])
@pytest.mark.parametrize("final_newline", [True, False], ids=["ended", "unended"])
def test_line_ends_marks_and_compression_change_no_row(
    tmp_path: Path,
    form: Format,
    pack: Callable[[bytes], bytes],
    mark: bytes,
    newline: str,
    final_newline: bool,
) -> None:
    clean = read(_source(form, tmp_path / "clean", form.text()))
    text = mark + form.text(newline=newline)
    text = text if final_newline else text.removesuffix(newline.encode())

    got = read(_source(form, tmp_path / "log", pack(text)))

    assert len(clean.rows) == 60
    assert got == clean


@every_format
def test_a_uri_is_read_and_written_like_a_path(
    tmp_path: Path, here: pytest.MonkeyPatch, form: Format
) -> None:
    path = tmp_path / "log file"
    path.write_bytes(form.text())
    by_path, by_uri = form.open([str(path)]), form.open([f"file://{quote(str(path))}"])

    made = prepare(by_uri, f"file://{tmp_path}/by-uri", _protocol(form, by_uri))

    assert read(by_uri) == read(by_path)
    again = prepare(by_path, str(tmp_path / "by-path"), _protocol(form, by_path))
    assert made.fingerprint() == again.fingerprint()


def test_a_log_that_ends_in_empty_lines_is_read_in_little_memory(tmp_path: Path) -> None:
    form = FORMATS["criteo"]
    source = _source(form, tmp_path / "log", form.text() + b"\n" * 100_000)
    (block,) = source.blocks()

    tracemalloc.start()
    pieces = [(len(piece.labels), [bad.line for bad in piece.rejected]) for piece in source.read(block, 0)]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert sum(rows for rows, _ in pieces) == 60
    assert [line for _, lines in pieces for line in lines] == list(range(61, 100_061))
    assert peak < 40_000_000


@every_format
def test_far_more_malformed_rows_than_allowed_stop_the_job_before_the_end(
    tmp_path: Path, here: pytest.MonkeyPatch, form: Format
) -> None:
    here.setattr(parse, "HOPELESS_ROWS", 100)
    here.setattr(text_log, "PART_BAD_LINES", 20)
    here.setattr(csv_table, "BATCH_BYTES", 1_000)
    here.setattr(files, "CHUNK_BYTES", 1_000)
    source = _source(form, tmp_path / "log", form.text(form.lines + ["broken"] * 5_000))

    with pytest.raises(DataError) as caught:
        prepare(source, str(tmp_path / "data"), _protocol(form, source, max_bad_rows=0.01))

    found = re.search(r"log: ([\d,]+) rows are malformed, more than --max-bad-rows allows", str(caught.value))
    assert found
    rejected = int(found[1].replace(",", ""))
    assert 100 < rejected < 1_000
    named = [f"log:{60 + form.first_line + n} 1 fields instead of" in str(caught.value) for n in range(12)]
    assert named == [True] * 10 + [False] * 2
    kept = list((tmp_path / "data" / "rejected").iterdir())
    assert sum(len(path.read_text().splitlines()) for path in kept) == rejected
