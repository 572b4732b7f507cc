"""The few invariants without which a table or a plot would be wrong."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any, cast

from afm_dist import storage
from afm_dist.dataset.description_json import from_json
from afm_dist.errors import DataError
from afm_dist.report.schema import FORMAT_VERSION, STAGES, Report

ROW_KEYS = ("name", "stage", "auc", "log_loss", "parameters", "bytes", "rows_per_second", "throughput_ratio")
# What the rows of the test split may not define.
UNDEFINED = ("auc", "log_loss")
LAYER_KEYS = ("name", "kind", "method", "width")
RANKED_KEYS = ("rank", "kept_energy")


def validated(report: Mapping[str, Any]) -> Report:
    """Check that a report can be shown without showing a wrong figure, and give it as its type.

    Raises:
        DataError: the first thing found wrong, with the row or layer it is in.
    """
    version = report.get("format_version")
    if version != FORMAT_VERSION:
        raise DataError(
            f"report: format_version is {reprlib.repr(version)}, this version reads {FORMAT_VERSION}"
        )
    for key in ("title", "rows", "shipped"):
        _require(bool(report.get(key)), "report", f"'{key}' is missing or empty")
    for where, value in _numbers(report, ""):
        _require(
            math.isfinite(value), where, f"{value} is not a finite number; look at the stage it came from"
        )
    for row in report["rows"]:
        _check_row(row)
    _check_identities(report)
    for layer in report.get("layers", ()):
        _check_layer(layer)
    for candidate in report.get("finetuning", ()):
        _check_curve(candidate)
    described = (report.get("data") or {}).get("description")
    if described is not None:
        from_json(described, source="report")
    return cast(Report, report)


def read_report(location: str) -> Report:
    """Read a ``report.json``.

    Raises:
        DataError: it is missing or damaged, or would show a wrong figure.
    """
    return as_report(storage.read_json(location, dict[str, Any]), location)


def as_report(content: Mapping[str, Any], source: str) -> Report:
    """Check that every part of a ``report.json`` is what the schema says, and give it as its type.

    Args:
        content: Plain values.
        source: Where they were found, for messages.

    Raises:
        DataError: something is of another type, or as ``validated`` says.
    """
    version = content.get("format_version")
    if version == FORMAT_VERSION:
        storage.as_typed(content, Report, source=source)
    return validated(content)


def _require(condition: bool, where: str, problem: str) -> None:
    if not condition:
        raise DataError(f"{where}: {problem}")


def _numbers(value: Any, where: str) -> Iterator[tuple[str, float]]:
    """Every float below ``value``, with a description of where it stands."""
    if isinstance(value, float):
        yield where.strip() or "report", value
    elif isinstance(value, Mapping):
        for key, child in value.items():
            yield from _numbers(child, f"{where} {key}")
    elif isinstance(value, list | tuple):
        for index, child in enumerate(value):
            yield from _numbers(child, f"{where} {_name_of(child) or index}")


def _name_of(item: Any) -> str:
    """How an entry of a list is called in messages, as far as it has a name."""
    if not isinstance(item, Mapping) or "name" not in item:
        return ""
    stage = f" ({item['stage']})" if "stage" in item else ""
    return f"'{item['name']}'{stage}"


def _check_row(row: Mapping[str, Any]) -> None:
    where = f"report row {_name_of(row) or dict(row)}"
    for key in ROW_KEYS:
        _require(key in row if key in UNDEFINED else row.get(key) is not None, where, f"'{key}' is missing")
    _require(row["stage"] in STAGES, where, f"stage must be one of {', '.join(STAGES)}")
    auc = row["auc"]
    _require(auc is None or 0 <= auc <= 1, where, f"auc is {auc}, not between 0 and 1")
    for key in ("parameters", "bytes", "rows_per_second", "throughput_ratio"):
        _require(row[key] > 0, where, f"{key} is {row[key]}, not above 0")
    for index, each in enumerate(row.get("reliability", ())):
        inside = all(0 <= each[key] <= each["weight"] for key in ("predicted", "observed"))
        _require(inside and each["weight"] > 0, where, f"reliability bin {index} has more clicks than rows")
    spread = [row[f"throughput_ratio_{end}"] for end in ("min", "max") if f"throughput_ratio_{end}" in row]
    if spread:
        inside = len(spread) == 2 and spread[0] <= row["throughput_ratio"] <= spread[1]
        _require(
            inside, where, f"throughput_ratio {row['throughput_ratio']} is not inside its spread {spread}"
        )


def _check_identities(report: Mapping[str, Any]) -> None:
    identities = [(row["name"], row["stage"]) for row in report["rows"]]
    for identity in identities:
        if identities.count(identity) > 1:
            raise DataError(f"report row '{identity[0]}' ({identity[1]}): there are two of it")
    _require(
        ("baseline", "trained") in identities, "report", "there is no row 'baseline' (trained) to compare to"
    )
    shipped = (report["shipped"].get("name"), report["shipped"].get("stage"))
    _require(
        shipped in identities,
        "report",
        f"shipped is '{shipped[0]}' ({shipped[1]}), which is not among the rows",
    )


def _check_layer(layer: Mapping[str, Any]) -> None:
    where = f"report layer {_name_of(layer) or dict(layer)}"
    for key in LAYER_KEYS:
        _require(layer.get(key) is not None, where, f"'{key}' is missing")
    if all(layer.get(key) is None for key in RANKED_KEYS):
        return
    for key in RANKED_KEYS:
        _require(layer.get(key) is not None, where, f"'{key}' is missing")
    _require(
        (0 if layer["kind"] == "embedding" else 1) <= layer["rank"] <= layer["width"],
        where,
        f"rank {layer['rank']} is not within width {layer['width']}",
    )
    _require(
        0 <= layer["kept_energy"] <= 1, where, f"kept_energy {layer['kept_energy']} is not between 0 and 1"
    )
    values = layer.get("eigenvalues") or []
    _require(len(values) <= layer["width"], where, f"{len(values)} eigenvalues for width {layer['width']}")
    descending = all(first >= second for first, second in pairwise(values)) and (
        not values or values[-1] >= 0
    )
    _require(descending, where, "eigenvalues must be descending and not negative")


def _check_curve(candidate: Mapping[str, Any]) -> None:
    where = f"report fine-tuning {_name_of(candidate)}"
    steps = [point["step"] for point in candidate["curve"]]
    _require(all(first < second for first, second in pairwise(steps)), where, f"steps {steps} do not ascend")
    kept = candidate["kept_step"]
    _require(kept in steps, where, f"kept_step {kept} is not a step of its curve {steps}")
