"""What a dataset directory holds, as tables for the terminal and as a page."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from afm_dist import storage
from afm_dist.dataset.description import CategoricalField, Description, Token
from afm_dist.dataset.manifest import Manifest
from afm_dist.report import dataset_words as words
from afm_dist.report import text
from afm_dist.runtime import console
from data_prep.ownership import PAGE

WIDTH_IN_FILES = 120
WIDEST = 10_000
GAP = 2
TOKEN_LENGTH = 24
SHORT_DIGEST_LENGTH = 12
INPUTS_SHOWN = 8


def show(location: str) -> None:
    """Everything worth knowing about a dataset directory, printed and written as a page.

    Raises:
        DataError: it is none, or damaged.
    """
    description = Description.of(Manifest.load(location))
    show_tables(description)
    write_page(description, location)


def show_tables(description: Description) -> None:
    """Everything worth knowing, for a terminal of 80 columns or more, or a file."""
    show_summary(description)
    _show_categorical(description)
    _show_numeric(description)
    _show_thresholds(description)
    _show_inputs(description)


def show_summary(description: Description) -> None:
    """Rows and label rate per split, and what was rejected."""
    rows = [
        (
            split.name,
            text.count(split.rows),
            words.label_rate(split.label_rate),
            text.count(split.shards),
            text.megabytes(split.bytes),
        )
        for split in description.splits
    ]
    _print(_table(words.visible(description.name), ("split", "rows", "positive", "shards", "MB"), rows))
    console.info(
        f"{words.number(len(description.categorical), 'categorical field')} with "
        f"{text.count(description.ids)} ids (threshold {words.optional(description.threshold)}), "
        f"{words.number(len(description.numeric), 'numeric field')}; "
        f"{words.rejected(description)} rows rejected"
    )
    console.info(f"label {description.label!r}, preset {description.preset!r}, seed {description.seed}")
    if description.best is not None:
        where = f" on the {description.best.split} rows" if description.best.split else ""
        console.info(
            f"the true probabilities reach AUC {text.score(description.best.auc)} and log loss "
            f"{text.score(description.best.log_loss)}{where}: no model can do better"
        )


def write_page(description: Description, location: str) -> None:
    """Write ``describe.html`` into the dataset directory, or warn that it cannot be written."""
    from afm_dist.report.dataset_page import page  # matplotlib takes a second to import

    target = storage.join(location, PAGE)
    try:
        storage.write_bytes(target, page(description).encode())
    except OSError as error:
        console.warn(f"{target}: the page cannot be written ({error.strerror or error})")
    else:
        console.info(f"as a page: {target}")


def _show_categorical(description: Description) -> None:
    fields = description.categorical
    if not fields:
        return
    headings = ["field", "ids", "ids for\n90 %", "cover-\nage, %", "miss-\ning, %"]
    headings += [f"unknown\n{name[:5]}, %" for name in description.held_out]
    rows = [_categorical_row(field, description.held_out) for field in fields]
    room = _width() - _natural_width(_table("", headings, rows)) - GAP
    for row, field in zip(rows, fields, strict=True):
        row.append(_as_many_as_fit(field.top, room))
    console.info("")
    _print(_table("categorical fields", [*headings, "most frequent"], rows, left=(0, len(headings))))
    console.info("")
    made: dict[str, list[str]] = {}
    for field in fields:
        made.setdefault(words.visible(words.made_of(field)), []).append(words.visible(field.name))
    _print_pairs([(f"made by {how}", ", ".join(names)) for how, names in made.items() if how])
    if any(made):
        console.info("")
    _print_pairs(words.DEFINITIONS)


def _categorical_row(field: CategoricalField, held_out: Sequence[str]) -> list[str]:
    shares = [field.coverage, field.missing_share, *(field.unknown_share.get(name) for name in held_out)]
    return [
        _name(field.name),
        text.count(field.cardinality),
        words.optional(field.ids_for_90_percent),
        *(words.percent(share) for share in shares),
    ]


def _as_many_as_fit(tokens: Sequence[Token], room: int) -> str:
    """The first tokens and their shares: one, and as many more as there is room for."""
    shown = ""
    for token in tokens:
        longer = f"{shown}, " if shown else ""
        longer += f"{words.token(token.token, TOKEN_LENGTH)} {words.percent(token.share)}%"
        if shown and cell_len(longer) > room:
            break
        shown = longer
    return shown


def _show_numeric(description: Description) -> None:
    rows = [
        [
            _name(field.name),
            words.percent(field.missing_share),
            f"{field.mean:.4g}",
            f"{field.deviation:.4g}",
            words.visible(words.made_of(field)),
        ]
        for field in description.numeric
    ]
    headings = ["field", "missing, %", "mean", "deviation", "transform"]
    if rows:
        console.info("")
        _print(_table("numeric fields", headings, rows, left=(0, 4)))


def _show_thresholds(description: Description) -> None:
    rows = [
        [
            text.count(effect.threshold),
            text.count(effect.ids),
            words.percent(effect.coverage),
            f"{words.percent(effect.least_coverage)}  {_name(effect.least_covered)}",
        ]
        for effect in description.thresholds
    ]
    headings = ["threshold", "ids", "coverage, %", "least covered, %"]
    if rows:
        console.info("")
        _print(_table("what a higher threshold would leave", headings, rows, left=(3,)))


def _show_inputs(description: Description) -> None:
    length = _width() // 4
    rows = [
        [words.cut(words.visible(f.name), length), words.optional(f.bytes), f.sha256 or text.NONE]
        for f in description.inputs[:INPUTS_SHOWN]
    ]
    if not rows:
        return
    made = _table("made of", ["file", "bytes", "SHA-256"], rows, left=(0, 2))
    if _natural_width(made) > _width():
        for row in rows:
            row[2] = row[2][:SHORT_DIGEST_LENGTH]
        made = _table("made of", ["file", "bytes", "SHA-256 begins"], rows, left=(0, 2))
    console.info("")
    _print(made)
    if len(description.inputs) > INPUTS_SHOWN:
        total = sum(file.bytes or 0 for file in description.inputs)
        console.info(f"the first of {len(description.inputs)} files, {text.count(total)} bytes in all")


def _table(
    title: str, headings: Sequence[str], rows: Sequence[Sequence[str]], *, left: Sequence[int] = (0,)
) -> Table:
    """A table of text as it stands; the columns ``left`` hold words, the others numbers."""
    result = Table(
        title=Text(title, style="bold"),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    last = len(headings) - 1
    for index, heading in enumerate(headings):
        result.add_column(
            Text(heading),
            justify="left" if index in left else "right",
            vertical="bottom",
            # Where there is no room, the column that may be wrapped gives way; its cells are cut.
            no_wrap=index != last or last not in left,
        )
    for row in rows:
        result.add_row(*(Text(cell, no_wrap=True, overflow="ellipsis") for cell in row))
    return result


def _print_pairs(pairs: Sequence[tuple[str, str]]) -> None:
    """Names and what they mean."""
    result = Table.grid(padding=(0, 2, 0, 0))
    for name, meaning in pairs:
        result.add_row(Text(name), Text(meaning))
    if pairs:
        _print(result)


def _name(name: str) -> str:
    return words.cut(words.visible(name), _width() // 6)


def _natural_width(table: Table) -> int:
    return console.out.measure(table, options=console.out.options.update(width=WIDEST)).maximum


def _width() -> int:
    return console.out.width if console.out.is_terminal else WIDTH_IN_FILES


def _print(table: Table) -> None:
    width = console.out.width
    console.out.width = _width()
    console.out.print(table)
    console.out.width = width
