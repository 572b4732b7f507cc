"""Named protocols: short files that say how a raw log becomes a dataset, each with its source."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from afm_dist import storage
from afm_dist.errors import OptionError
from data_prep.protocol import ColumnRule

FOLDER = Path(__file__).parent
ENDING = ".toml"

TOP_LEVEL: Mapping[str, type | tuple[type, ...]] = {
    "description": str,
    "source": str,
    "threshold": int,
    "rows_per_shard": int,
    "max_bad_rows": (int, float),
    "split": dict,
    "fields": dict,
}
SPLIT: Mapping[str, tuple[str, type | tuple[type, ...]]] = {
    "by": ("split_by", str),
    "column": ("split_column", str),
    "validation_share": ("validation_share", (int, float)),
    "test_share": ("test_share", (int, float)),
    "validation_from": ("validation_from", str),
    "test_from": ("test_from", str),
}
FIELD: Mapping[str, type] = {"from": str, "as": str, "format": str, "drop": bool}


@dataclass(frozen=True, kw_only=True)
class PreparationPreset:
    """What a preset file says.

    Attributes:
        name: The name, or the file's name without its ending.
        description: One line.
        source: The raw format it is for; None: any.
        options: Values of fields of ``Protocol``, by name.
    """

    name: str
    description: str
    source: str | None
    options: Mapping[str, Any]


def names() -> list[str]:
    """The presets that come with afm-dist."""
    return sorted(path.stem for path in FOLDER.glob(f"*{ENDING}"))


def load(name: str) -> PreparationPreset:
    """Read a preset by its name, or from a file whose name ends in ``.toml``.

    Raises:
        OptionError: there is none, or it says something that is not understood.
    """
    if name.endswith(ENDING):
        if not storage.exists(name):
            raise OptionError(f"--preset {name}: no such file; check the path")
        text, where = storage.read_bytes(name), name
    elif name in names():
        text, where = (FOLDER / f"{name}{ENDING}").read_bytes(), f"preset {name}"
    else:
        raise OptionError(f"--preset {name}: choose from {', '.join(names())}, or name a {ENDING} file")
    try:
        content = tomllib.loads(text.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise OptionError(f"{where}: not valid TOML ({error})") from error
    return _parse(Path(name).stem if name.endswith(ENDING) else name, content, where)


def _parse(name: str, content: dict[str, Any], where: str) -> PreparationPreset:
    _check(content, TOP_LEVEL, where)
    options: dict[str, Any] = {
        key: content[key] for key in ("threshold", "rows_per_shard", "max_bad_rows") if key in content
    }
    split = content.get("split", {})
    _check(split, {key: kind for key, (_, kind) in SPLIT.items()}, f"{where}, [split]")
    options.update({SPLIT[key][0]: value for key, value in split.items()})
    options["columns"] = tuple(
        _column_rule(field, rule, where) for field, rule in content.get("fields", {}).items()
    )
    return PreparationPreset(
        name=name,
        description=content.get("description", ""),
        source=content.get("source"),
        options={**options, "preset": name},
    )


def _column_rule(field: str, rule: Any, where: str) -> ColumnRule:
    place = f"{where}, [fields.{field}]"
    if not isinstance(rule, dict):
        raise OptionError(f"{place}: write a table, such as: as = 'number'")
    _check(rule, FIELD, place)
    if rule.get("drop", False) == ("as" in rule):
        raise OptionError(f"{place}: give either as = '…' or drop = true")
    column = rule.get("from", field)
    is_pattern = any(mark in field for mark in "*?[")
    try:
        return ColumnRule(
            column=column,
            transform=rule.get("as"),
            field="" if is_pattern else field,
            time_format=rule.get("format", ""),
        )
    except OptionError as error:
        raise OptionError(f"{place}: {error}") from error


def _check(content: Mapping[str, Any], known: Mapping[str, type | tuple[type, ...]], where: str) -> None:
    for key, value in content.items():
        if key not in known:
            raise OptionError(f"{where}: {key!r} is unknown; it takes {', '.join(known)}")
        if not isinstance(value, known[key]) or (isinstance(value, bool) and known[key] is not bool):
            raise OptionError(f"{where}: {key} = {value!r} is of the wrong type")
