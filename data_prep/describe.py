"""What a dataset directory holds, as tables for the terminal and as a page."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from afm_dist import console, storage
from afm_dist.dataset.description import CategoricalField, Description, Token
from afm_dist.dataset.manifest import Manifest
from afm_dist.report import dataset_words as words
from afm_dist.report import text
from data_prep.plan import PAGE

WIDTH_IN_FILES = 120
NAME_LENGTH = 20
TOKEN_LENGTH = 24
DIGEST_LENGTH = 64
SHORT_DIGEST_LENGTH = 12
INPUTS_SHOWN = 8


def show(location: str) -> None:
    """Everything worth knowing about a dataset directory, printed and written as a page.

    Raises:
        DataError: it is none, or damaged.
    """
    description = Description.of(Manifest.load(location))
    show_summary(description)
    _show_categorical(description)
    _show_numeric(description)
    _show_thresholds(description)
    _show_inputs(description)
    write_page(description, location)


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
    _print(_table(description.name, ("split", "rows", "positive", "shards", "MB"), rows))
    threshold = words.optional(description.threshold)
    console.say(
        f"{words.number(len(description.categorical), 'categorical field')} with {text.count(description.ids)} "
        f"ids (threshold {threshold}), {words.number(len(description.numeric), 'numeric field')}; "
        f"{words.optional(description.rows_rejected)} of {words.optional(description.rows_read)} rows rejected"
    )
    console.say(f"label {description.label}, preset {description.preset}, seed {description.seed}")
    if description.best is not None:
        where = f" on the {description.best.split} rows" if description.best.split else ""
        console.say(
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
        console.warn(f"{target}: cannot be written ({error.strerror or error}); the tables above say the same")
    else:
        console.say(f"as a page: {target}")


def _show_categorical(description: Description) -> None:
    if not description.categorical:
        return
    held_out = description.held_out
    headings = ["\nfield", "\nids", "ids for\n90 %", "cover-\nage, %", "miss-\ning, %"]
    headings += [f"unknown\n{name[:5]}, %" for name in held_out]
    rows = [_categorical_row(field, held_out) for field in description.categorical]
    table = _table("categorical fields", headings, rows)
    room = _width() - _measured(table) - 1
    tops = [_as_many_as_fit(field.top, room) for field in description.categorical]
    _print(_table("categorical fields", [*headings, "most frequent\nin training, %"], rows, tops))
    for heading, meaning in words.DEFINITIONS:
        _print(_definition(heading, meaning))
    made = [(field.name, words.made_of(field)) for field in description.categorical if words.made_of(field)]
    ...


def _categorical_row(field: CategoricalField, held_out: Sequence[str]) -> tuple[str, ...]:
    return (
        words.cut(field.name, NAME_LENGTH),
        text.count(field.cardinality),
        words.optional(field.ids_for_90_percent),
        words.percent(field.coverage),
        words.percent(field.missing_share),
        *(words.percent(field.unknown_share.get(name)) for name in held_out),
    )
