"""Which column of a table is the label, a categorical or a numeric field: named or inferred."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from afm_dist.dataset.manifest import FieldKind
from afm_dist.errors import DataError, OptionError

LISTED_CHARACTERS = 1_000

Content = Literal["text", "integers", "long integers", "decimals", "empty", "not read"]


@dataclass(frozen=True, kw_only=True)
class ColumnOptions:
    """What the user says about the columns; what is left unsaid is inferred.

    Attributes:
        label: The column with 0 or 1; None: there is none, or nobody asks.
        categorical: Columns to take as categories.
        numeric: Columns to take as numbers.
        drop: Columns to leave out.
        only_named: Whether columns that are not named are left out instead.
        kept: Columns to carry along as they are.
        spellings: How the tokens of each were spelled when the model was trained that reads them.
    """

    label: str | None
    categorical: tuple[str, ...] = ()
    numeric: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    only_named: bool = False
    kept: tuple[str, ...] = ()
    spellings: Mapping[str, str] = field(default_factory=dict)

    @property
    def wanted(self) -> tuple[str, ...] | None:
        """The columns that are read; None: all."""
        return (*self.categorical, *self.numeric, *self.kept) if self.only_named else None


@dataclass(frozen=True, kw_only=True)
class RawColumn:
    """A column of the table and what it is taken for.

    Attributes:
        name: Of the column.
        kind: What it is; None: no field.
        why: Who says so, or what it was inferred from.
        named: Whether the user said so.
    """

    name: str
    kind: FieldKind | None
    why: str
    named: bool = False

    def __str__(self) -> str:
        return f"  {self.name}: {self.kind or ''}{' ' if self.kind else ''}({self.why})"


def choose_columns(
    contents: Mapping[str, Content], types: Mapping[str, str], options: ColumnOptions, where: str
) -> list[RawColumn]:
    """Decide about every column, in the order of the table.

    Text and integers are categories (ids, codes, small counts: an embedding per value loses
    nothing), decimal numbers are numbers; a column named by an option is what the option says.

    Args:
        contents: What each column holds.
        types: The type of each, for messages.
        options: What the user says.
        where: The file, for messages.

    Raises:
        OptionError: an option names a column that is not there, two options name the same, or a
            column that is not left out has a type that is not read.
        DataError: of the only columns to be read some are not there.
    """
    check_options(tuple(contents), options, where)
    columns = []
    for name, content in contents.items():
        column: RawColumn
        if options.only_named and name not in options.categorical + options.numeric:
            columns.append(RawColumn(name=name, kind=None, why="not read"))
            continue
        if content == "not read" and name not in options.drop:
            advice = (
                "name another with --label" if name == options.label else f"leave it out with --drop {name}"
            )
            raise OptionError(
                f"{where}: column {name!r} has type {types[name]}, which is neither number nor text; {advice}"
            )
        if name == options.label:
            column = RawColumn(name=name, kind=None, why="the label")
        elif name in options.drop:
            column = RawColumn(name=name, kind=None, why="left out: --drop")
        elif name in options.categorical:
            column = RawColumn(name=name, kind="categorical", why="--categorical", named=True)
        elif name in options.numeric:
            column = RawColumn(name=name, kind="numeric", why="--numeric", named=True)
        elif content == "decimals":
            column = RawColumn(name=name, kind="numeric", why="inferred: decimal numbers")
        else:
            column = RawColumn(name=name, kind="categorical", why=f"inferred: {content}")
        columns.append(column)
    if not any(column.kind for column in columns):
        raise OptionError(f"{where}: no column is left besides the label '{options.label}'; check --drop")
    return columns


def listed(names: Sequence[str]) -> str:
    """The names of columns for a message, the first ones where there are many or long ones."""
    text = ", ".join(names)
    return text if len(text) <= LISTED_CHARACTERS else f"{text[:LISTED_CHARACTERS]}… ({len(names):,} columns)"


def check_options(names: Sequence[str], options: ColumnOptions, where: str) -> None:
    """Refuse options that name a column that is not there, or one twice.

    Args:
        names: The columns of a file.
        options: What the user says.
        where: The file, for messages.

    Raises:
        OptionError: naming the option and the column.
        DataError: of the only columns to be read some are not there.
    """
    listing = listed(names)
    if options.only_named:
        if missing := [name for name in options.categorical + options.numeric if name not in names]:
            raise DataError(f"{where}: has no column {', '.join(missing)}; it has: {listing}")
        if missing := [name for name in options.kept if name not in names]:
            raise OptionError(f"--keep {', '.join(missing)}: {where} has no such column; it has: {listing}")
        return
    if options.label not in names:
        raise OptionError(f"--label {options.label}: {where} has no such column; it has: {listing}")
    role: dict[str | None, str] = {options.label: "--label"}
    for option, given in (
        ("--categorical", options.categorical),
        ("--numeric", options.numeric),
        ("--drop", options.drop),
    ):
        for name in given:
            if name not in names:
                raise OptionError(f"{option} {name}: {where} has no such column; it has: {listing}")
            if name in role:
                raise OptionError(f"{option} {name}: the column is also named by {role[name]}; name it once")
            role[name] = option
