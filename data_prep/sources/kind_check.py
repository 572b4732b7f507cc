"""Whether what was inferred of a table's columns holds for all their rows.

Ids that a tool wrote as decimal numbers (``7.0``, for a column with a missing value) look like numbers, and
a price looks like an id as long as it is a whole number. Where the first rows of the files, or any later
row, could be either, the user has to say which.
"""

from __future__ import annotations

from collections.abc import Sequence

from afm_dist.errors import DataError
from afm_dist.runtime import console
from data_prep.sources.forms import ColumnForms, Example, Form, Forms
from data_prep.sources.tabular_columns import RawColumn

DECIMALS: tuple[Form, ...] = ("whole decimal", "fraction", "lost digits")


def check_kinds(columns: Sequence[RawColumn], forms: Forms) -> None:
    """See that no value contradicts what was inferred of its column.

    Args:
        columns: The columns of a table.
        forms: How the values of those that may hold numbers are written.

    Raises:
        DataError: naming the column, the first value that contradicts, its file and line, and the options
            that decide.
    """
    for column in columns:
        found = forms.get(column.name, {})
        if column.named or column.kind is None:
            continue
        if column.kind == "numeric":
            _check_numeric(column, found)
        # A long integer is an identifier, and so is what stands with it.
        elif decimals := [found[form] for form in found if form in DECIMALS and "long integer" not in found]:
            raise _ambiguous(column, decimals[0], found)


def warn_of_lost_digits(columns: Sequence[RawColumn], forms: Forms) -> None:
    """Say which ids were written as decimal numbers that are too long for it; arguments as above."""
    for column in columns:
        lost = forms.get(column.name, {}).get("lost digits")
        if lost and column.kind == "categorical":
            console.warn(
                f"column {column.name!r} is of ids, and {lost} is written as a decimal number of more digits "
                "than such a number keeps: ids that differ may have become one; write integers or text"
            )


def _check_numeric(column: RawColumn, found: ColumnForms) -> None:
    name = column.name
    if long := found.get("long integer"):
        raise DataError(
            f"column {name!r} is taken for numbers ({column.why}), but {long} is longer than a number keeps, "
            f"as identifiers are; say --categorical {name} or --numeric {name}"
        )
    if "fraction" in found:
        return
    if lost := found.get("lost digits"):
        raise DataError(
            f"column {name!r} holds whole numbers written as decimal ones, of which {lost} has more digits "
            "than such a number keeps: ids that were read so have lost their last digits (write integers or "
            f"text); if they are numbers, say --numeric {name}"
        )
    if "integer" in found and "whole decimal" in found:
        raise _ambiguous(column, found["whole decimal"], found)


def _ambiguous(column: RawColumn, decimal: Example, found: ColumnForms) -> DataError:
    name, integer = column.name, found.get("integer")
    there = f"{integer} is an integer and {decimal}" if integer else str(decimal)
    return DataError(
        f"column {name!r}: {there} a decimal number, so that it may hold ids or numbers; say --categorical "
        f"{name} (7.0 is then the id 7) or --numeric {name}, or leave it out with --drop {name}"
    )
