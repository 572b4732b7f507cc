"""JSON that is not what it should be is refused in one line with file and field."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypedDict

import pytest
from msgspec import Meta

from afm_dist.errors import DataError
from afm_dist.storage import parse_json


@dataclass(frozen=True, kw_only=True)
class Part:
    name: str
    rows: Annotated[int, Meta(ge=0)] = 0
    share: float | None = None


@dataclass(frozen=True, kw_only=True)
class Whole:
    parts: tuple[Part, ...]
    by_name: dict[str, Part]


class Open(TypedDict):
    name: str
    rows: list[int]


def read(text: str | bytes, kind: Any = Whole) -> Any:
    return parse_json(text if isinstance(text, bytes) else text.encode(), kind, source="x.json", fix="fix it")


def test_what_is_well_formed_becomes_the_type() -> None:
    text = '{"parts": [{"name": "a", "rows": 3}], "by_name": {"b": {"name": "b", "share": 1}}}'

    assert read(text) == Whole(
        parts=(Part(name="a", rows=3),), by_name={"b": Part(name="b", rows=0, share=1.0)}
    )


def test_plain_values_come_back_as_they_are_with_names_that_an_open_type_does_not_have() -> None:
    assert read('{"name": "a", "rows": [1], "more": {"x": 0.5}}', Open) == {
        "name": "a",
        "rows": [1],
        "more": {"x": 0.5},
    }


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('{"parts": [], "by_name": {}, "more": 1}', "more"),
        ('{"parts": [{"name": "a", "row": 1}], "by_name": {}}', "parts[0].row"),
        ('{"parts": [{"name": "a"}], "by_name": {"k": {"name": "a", "row": 1}}}', "by_name.k.row"),
        ('{"parts": [{"name": "a"}, {"name": 1}], "by_name": {}}', "parts[1].name"),
        ('{"parts": [{"name": "a", "rows": "1"}], "by_name": {}}', "parts[0].rows"),
        ('{"parts": [{"name": "a", "rows": 1.0}], "by_name": {}}', "parts[0].rows"),
        ('{"parts": [{"name": "a", "rows": true}], "by_name": {}}', "parts[0].rows"),
        ('{"parts": [{"name": "a", "rows": -1}], "by_name": {}}', "parts[0].rows"),
        ('{"parts": [{"rows": 1}], "by_name": {}}', "'name' is missing"),
        ('{"parts": {}, "by_name": {}}', "parts"),
        ('{"parts": null, "by_name": {}}', "parts"),
        ('{"parts": [], "by_name": []}', "by_name"),
        ("[]", "object"),
        ("null", "object"),
    ],
)
def test_another_type_is_named_by_its_field(text: str, named: str) -> None:
    with pytest.raises(DataError) as error:
        read(text)

    assert str(error.value).startswith("x.json: damaged (")
    assert named in str(error.value)
    assert str(error.value).endswith("; fix it")


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b" " * 1_000_000,
        b'{"name": "a"',
        b'{"name": "a", "rows": [1]} 2',
        b'{"name": "a", "name": "b", "rows": [1]}',
        b'{"name": "a", "rows": [1], "deep": {"x": 1, "x": 1}}',
        b'{"name": "a", "rows": [NaN]}',
        b'{"name": "a", "rows": [1], "more": Infinity}',
        b'{"name": "a", "rows": [1], "more": 1e999}',
        b'{"name": "a", "rows": [' + b"1" * 5_000 + b"]}",
        b'{"name": "a", "rows": [1], "more": ' + b"1" * 30 + b"}",
        b'{"name": "a", "rows": [1], "more": ' + b"[" * 100_000 + b"}",
        b'{"name": "a", "rows": [1], "more": ' + b"[" * 100 + b"]" * 100 + b"}",
        b'{"name": "a", "rows": [1], "more": ' + b'{"a":' * 100_000,
        b'{"name": "\xff", "rows": [1]}',
        b'{"name": "\\ud800", "rows": [1]}',
        b'{"name": "a\nb", "rows": [1]}',
        b'{"name": "a\0b", "rows": [1]}',
        b'\xef\xbb\xbf{"name": "a", "rows": [1]}',
        '{"name": "a", "rows": [1]}'.encode("utf-16"),
        b"\0" * 100,
    ],
    ids=lambda text: repr(text[:60]),
)
def test_what_is_no_json_of_ours_is_refused(text: bytes) -> None:
    with pytest.raises(DataError, match=r"^x\.json: not valid JSON .*; fix it$") as error:
        read(text, Open)

    assert len(str(error.value)) < 300


def test_a_value_that_is_refused_is_not_repeated_at_length() -> None:
    with pytest.raises(DataError) as error:
        read('{"name": ' + "[" * 60 + "]" * 60 + ', "rows": []}', Open)

    assert len(str(error.value)) < 300


def test_nothing_else_parses_json() -> None:
    root = Path(__file__).parents[1]
    sources = [
        path for package in ("afm_dist", "data_prep", "jobs") for path in (root / package).rglob("*.py")
    ]

    parsing = {
        str(path.relative_to(root))
        for path in sources
        if re.search(r"\bjson\.loads?\(", path.read_text("utf-8"))
    }

    assert parsing == {
        "afm_dist/storage/typed_json.py",
        # What it has just written itself.
        "afm_dist/storage/content.py",
        # What Ray says, of itself.
        "afm_dist/runtime/cluster.py",
        "afm_dist/runtime/machine.py",
    }
