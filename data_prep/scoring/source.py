"""The rows to be scored, read as the log was that the model was trained on."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

from afm_dist.dataset.manifest import FieldKind, Manifest
from afm_dist.errors import DataError, OptionError
from data_prep.sources import files
from data_prep.sources.avazu import AvazuSource
from data_prep.sources.criteo import CriteoSource
from data_prep.sources.source import Source
from data_prep.sources.tabular import NUMBERS_AS_TEXT, TabularSource, is_parquet
from data_prep.sources.tabular_columns import ColumnOptions
from data_prep.sources.text_log import FormatError, TextLog
from data_prep.transforms import TRANSFORMS, FieldRule, spelled_rule

SourceName = Literal["criteo", "avazu", "tabular"]

TEXT_LOGS: Mapping[str, type[TextLog]] = {"criteo": CriteoSource, "avazu": AvazuSource}
# A text 5 and an integer 5 are the same token; a double 5.0 is another.
ALIKE = {"text", NUMBERS_AS_TEXT, "integer"}
DECIMAL_INTEGER = re.compile(r"decimal[0-9]*\([0-9]+, 0\)")


def rules_of(manifest: Manifest) -> tuple[FieldRule, ...]:
    """How each field of a model is made of raw columns, in model order.

    Raises:
        DataError: by a transform that this release does not know.
    """
    try:
        return tuple(spelled_rule(f.name, f.column, f.transform) for f in manifest.fields)
    except ValueError as error:
        raise DataError(f"{manifest.location}: {error}; it was made by another release") from error


def open_source(
    paths: Sequence[str], manifest: Manifest, *, name: SourceName | None = None, keep: Sequence[str] = ()
) -> Source:
    """The rows of some files, without labels.

    Args:
        paths: The files, in order.
        manifest: What makes raw rows inputs of the model.
        name: What the files are; by default what the model was trained on, or a table where the first
            that is not empty is a Parquet file.
        keep: Columns to carry along.

    Raises:
        DataError: a file is absent, of another format, or lacks a column that the model reads.
        OptionError: a column to carry along is not there, or the source has not the model's columns.
    """
    columns: dict[str, FieldKind] = {
        rule.column: TRANSFORMS[rule.transform].reads for rule in rules_of(manifest)
    }
    given = name is not None
    if name is None:
        # An empty file says nothing; it is passed over, or refused, as by every source.
        first = next((path for path in paths if files.describe(path).bytes), paths[0])
        name = "tabular" if is_parquet(first) else _trained_on(manifest)
    if name == "tabular":
        return _table(paths, manifest, columns, keep)
    try:
        source = TEXT_LOGS[name](paths, labelled=False, kept=keep)
    except FormatError as error:
        if given:
            raise
        raise DataError(
            f"{error}; no --source was given, and the model was trained on {name} text: for a CSV give "
            "--source tabular"
        ) from error
    there = {column.name for column in source.fields}
    if missing := [column for column in columns if column not in there]:
        raise OptionError(
            f"--source {name}: such a log has no column {', '.join(missing)}, which the model reads; name "
            "what the model was trained on"
        )
    return source


def _kind(manifest: Manifest) -> str:
    """What the log was that the model was trained on, as the manifest calls it."""
    kind = manifest.facts["source"]
    return str(manifest.facts["synthetic"]["shape"] if kind == "synthetic" else kind)


def _trained_on(manifest: Manifest) -> SourceName:
    """What the log was that the model was trained on.

    Raises:
        DataError: a format that this release does not know.
    """
    kind = _kind(manifest)
    for known in get_args(SourceName):
        if kind == known:
            return known  # type: ignore[no-any-return]
    raise DataError(f"{manifest.location}: its source {kind!r} is unknown; name one with --source")


def _table(
    paths: Sequence[str], manifest: Manifest, columns: Mapping[str, FieldKind], keep: Sequence[str]
) -> TabularSource:
    # A text log, and what an older release prepared, has no spellings.
    trained = {name: _released(spelling) for name, spelling in manifest.facts.get("spellings", {}).items()}
    of_text_log = _kind(manifest) in TEXT_LOGS
    source = TabularSource(
        paths,
        ColumnOptions(
            label=None,
            categorical=tuple(name for name, kind in columns.items() if kind == "categorical"),
            numeric=tuple(name for name, kind in columns.items() if kind == "numeric"),
            only_named=True,
            kept=tuple(keep),
            spellings={} if of_text_log else {name: trained.get(name, "text") for name in columns},
        ),
    )
    for name, spelling in source.spellings.items():
        before = trained.get(name, "text" if of_text_log else spelling)
        if "empty" in (spelling, before) or spelling == before or {spelling, before} <= ALIKE:
            continue
        raise DataError(
            f"{source.paths[0]}: column {name!r} holds {spelling} values where the model was trained on "
            f"{before}: equal values would be other tokens; write the column as {before}"
        )
    return source


def _released(spelling: str) -> str:
    """How this release names a spelling; an earlier one named the type of decimals of scale 0."""
    return "integer" if DECIMAL_INTEGER.fullmatch(spelling) else spelling
