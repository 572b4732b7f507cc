"""JSON read as what it should hold: every failure is one line with the file and the field.

A dataclass is closed: a name that it does not have is refused. A ``TypedDict`` is open: names that it does
not have may be there. Types without dataclasses and tuples describe plain values, which come back as they
are.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cache
from typing import Any, TypeVar, cast

import msgspec
from msgspec import inspect

from afm_dist.errors import DataError

T = TypeVar("T")

# Deeper than anything that is written here, and less than what Python's stack takes.
MAX_DEPTH = 64
MAX_CHARACTERS = 200
INTEGERS = (-(2**63), 2**64 - 1)
FILE_FIX = "the file is damaged, make it again"
BYTE_ORDER_MARK = b"\xef\xbb\xbf"

_LACKING = re.compile(r"^Object missing required field (.*)$", re.DOTALL)
_PLACE = re.compile(r" - at `\$\.?(.*)`$", re.DOTALL)


def parse_json(content: bytes, kind: type[T], *, source: str, fix: str = FILE_FIX) -> T:
    """Parse JSON into a type.

    Args:
        content: The text, UTF-8.
        kind: What it should hold: a dataclass, a ``TypedDict``, or a container of such.
        source: Where it was found, for messages.
        fix: What to do about an error.

    Raises:
        DataError: it is not JSON, names something twice, is nested too deeply, has an integer of more than 64
            bits, or is not of the type.
    """
    try:
        if content.startswith(BYTE_ORDER_MARK):
            raise ValueError("it begins with a byte-order mark")
        # Stricter than Python's: no NaN, no half of a surrogate pair, nothing but UTF-8.
        msgspec.json.decode(content)
        value = json.loads(content, object_pairs_hook=_distinct)
        _check_limits(value, 0)
    except RecursionError as error:
        raise DataError(f"{source}: not valid JSON (nested too deeply); {fix}") from error
    except ValueError as error:
        raise DataError(f"{source}: not valid JSON ({_short(error)}); {fix}") from error
    return as_typed(value, kind, source=source, fix=fix)


def as_typed(value: Any, kind: type[T], *, source: str, fix: str = FILE_FIX) -> T:
    """Turn plain values, as JSON has them, into a type; arguments as of ``parse_json``.

    Raises:
        DataError: they are not of the type.
    """
    try:
        typed = msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise DataError(f"{source}: damaged ({_short(_in_words(error))}); {fix}") from error
    except (RecursionError, OverflowError) as error:
        raise DataError(f"{source}: damaged (a value that cannot be: {error}); {fix}") from error
    described = _described(cast(Any, kind))
    unknown = _unknown(value, described, "")
    if unknown is not None:
        raise DataError(f"{source}: damaged ({_short(unknown)}: an unknown name); {fix}")
    return cast(T, value) if _is_plain(described) else typed


def _short(what: object) -> str:
    """Shorten a message, however long the value is that it repeats."""
    text = str(what)
    return text if len(text) <= MAX_CHARACTERS else f"{text[:MAX_CHARACTERS]}…"


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object of some pairs, each of whose names occurs once."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r} is named twice")
    return found


def _check_limits(value: Any, depth: int) -> None:
    """Refuse what other code could not walk through or count."""
    if isinstance(value, dict | list):
        if depth >= MAX_DEPTH:
            raise ValueError("nested too deeply")
        for item in value.values() if isinstance(value, dict) else value:
            _check_limits(item, depth + 1)
    elif isinstance(value, int) and not INTEGERS[0] <= value <= INTEGERS[1]:
        raise ValueError("an integer has more than 64 bits")


def _in_words(error: msgspec.ValidationError) -> str:
    """Describe what was found where, the place first."""
    text = str(error)
    place = _PLACE.search(text)
    what = (text[: place.start()] if place else text).replace("`", "")
    what = _LACKING.sub(r"'\1' is missing", what)
    return f"{place[1]}: {what}" if place and place[1] else what


@cache
def _described(kind: Any) -> inspect.Type:
    return inspect.type_info(kind)


def _is_plain(kind: inspect.Type) -> bool:
    """Return whether values of a type are what they are in JSON."""
    if isinstance(kind, inspect.DataclassType | inspect.VarTupleType | inspect.TupleType):
        return False
    if isinstance(kind, inspect.TypedDictType):
        return all(_is_plain(field.type) for field in kind.fields)
    if isinstance(kind, inspect.UnionType):
        return all(map(_is_plain, kind.types))
    if isinstance(kind, inspect.ListType):
        return _is_plain(kind.item_type)
    return not isinstance(kind, inspect.DictType) or _is_plain(kind.value_type)


def _unknown(value: Any, kind: inspect.Type, where: str) -> str | None:
    """Find the first name that a dataclass does not have, within a value of this type."""
    if isinstance(kind, inspect.UnionType):
        return next((place for one in kind.types if (place := _unknown(value, one, where))), None)
    for place, item, of_item in _children(value, kind, where):
        found = place if of_item is None else _unknown(item, of_item, place)
        if found is not None:
            return found
    return None


def _children(value: Any, kind: inspect.Type, where: str) -> list[tuple[str, Any, inspect.Type | None]]:
    """List place, value and type of what lies directly in a value; no type: a name that is unknown."""
    if isinstance(value, Mapping):
        if isinstance(kind, inspect.DictType):
            of_name = dict.fromkeys(value, kind.value_type)
        elif isinstance(kind, inspect.DataclassType | inspect.TypedDictType):
            of_name = {field.encode_name: field.type for field in kind.fields}
        else:
            return []
        is_open = isinstance(kind, inspect.TypedDictType)
        return [
            (f"{where}.{name}" if where else str(name), item, of_name.get(name))
            for name, item in value.items()
            if name in of_name or not is_open
        ]
    if isinstance(value, list | tuple) and isinstance(kind, inspect.ListType | inspect.VarTupleType):
        return [(f"{where}[{index}]", item, kind.item_type) for index, item in enumerate(value)]
    return []
