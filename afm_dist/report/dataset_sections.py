"""Sections about a dataset: splits, categorical and numeric fields, thresholds, origin."""

from __future__ import annotations

from functools import partial

from afm_dist.dataset.description import CategoricalField, Description
from afm_dist.report import dataset_words as words
from afm_dist.report import text
from afm_dist.report.plots import vocabularies
from afm_dist.report.view import (
    Beside,
    Block,
    Facts,
    Folded,
    Grid,
    GridColumn,
    Inline,
    Line,
    Plot,
    Span,
    code,
    grid,
    numbers,
    pruned,
    texts,
)

PLOTTED_FIELDS = 60
FOLDED_FROM = 6
TOKEN_LENGTH = 32


def splits(description: Description) -> list[Block]:
    """Show rows, label rate and files of each split, and how they were made."""
    table = grid(
        "Rows of each split",
        [*texts("Split"), *numbers("Rows", "Positive", "Shards", "MB")],
        [
            [
                split.name,
                text.count(split.rows),
                words.label_rate(split.label_rate),
                text.count(split.shards),
                text.megabytes(split.bytes),
            ]
            for split in description.splits
        ],
    )
    facts: list[tuple[str, Inline]] = [
        ("Label", code(description.label)),
        ("Preset", code(description.preset)),
        ("Threshold", words.optional(description.threshold)),
        ("Seed", str(description.seed)),
        ("Rejected rows", words.rejected(description)),
    ]
    best = description.best
    if best is not None:
        facts.append(text.best_possible(best.auc, best.log_loss, best.split))
    return [Beside([table, Facts(facts)])]


def categorical(description: Description) -> list[Block]:
    """Show the fields of ids: plots first, then all of them in numbers."""
    return [*ids(description), *categorical_numbers(description)]


def ids(description: Description) -> list[Block]:
    """Draw which ids the training rows hold, and how many ids each field has."""
    fields = description.categorical
    if not fields:
        return []
    largest = sorted(fields, key=lambda field: -field.cardinality)[:PLOTTED_FIELDS]
    plotted = [field for field in fields if field in largest]
    of_all = "" if len(plotted) == len(fields) else f" The {len(plotted)} fields with most ids."
    rows = Plot(
        partial(vocabularies.rows_by_rank, plotted),
        "Which ids the training rows hold",
        f"From the most frequent id of each field to the rare ones.{of_all}",
    )
    sizes = Plot(
        partial(vocabularies.ids_by_field, plotted),
        "How many ids each field has",
        f"An embedding table has a row for each. Linear axis.{of_all}",
    )
    return [Beside([rows, sizes])]


def categorical_numbers(description: Description) -> list[Block]:
    """List all fields of ids, and what the columns mean."""
    if not description.categorical:
        return []
    columns = [
        *texts("Field"),
        *numbers("Ids", f"Ids for 90{text.SPACE}%"),
        *_shares("Coverage", "Missing", *(f"Unknown in {name}" for name in description.held_out)),
        GridColumn("Most frequent", text=True, optional=True),
    ]
    lines = [_categorical_line(field, description) for field in description.categorical]
    table = pruned(Grid("Categorical fields", columns, lines))
    # A report that is passed around leaves the tokens out.
    tokens = len(table.columns) == len(columns)
    meanings = [pair for pair in words.DEFINITIONS if tokens or pair[0] != words.MOST_FREQUENT]
    return [table, Facts([(name.capitalize(), meaning) for name, meaning in meanings])]


def _categorical_line(field: CategoricalField, description: Description) -> Line:
    unknown = (field.unknown_share.get(name) for name in description.held_out)
    top: list[str | Span] = []
    for token in field.top:
        share = f"{text.SPACE}{words.percent(token.share)}{text.SPACE}%"
        top += [", " if top else "", code(words.token(token.token, TOKEN_LENGTH)), share]
    made_of = words.made_of(field)
    return Line(
        cells=[
            Span(text=field.name),
            text.count(field.cardinality),
            words.optional(field.ids_for_90_percent),
            *(words.percent(share) for share in (field.coverage, field.missing_share, *unknown)),
            top or "",
        ],
        note=f"made by {made_of}" if made_of else "",
    )


def numeric(description: Description) -> list[Block]:
    """List the fields of numbers."""
    cells: list[list[Inline]] = [
        [
            Span(text=field.name),
            words.percent(field.missing_share),
            f"{field.mean:.4g}",
            f"{field.deviation:.4g}",
            words.made_of(field) or text.NONE,
        ]
        for field in description.numeric
    ]
    caption = "Numeric fields: mean and deviation of the transformed values over the training rows"
    columns = [
        *texts("Field"),
        *_shares("Missing"),
        *numbers("Mean", "Deviation"),
        *texts("Transform"),
    ]
    return [grid(caption, columns, cells)] if cells else []


def thresholds(description: Description) -> list[Block]:
    """Show what a higher threshold would leave."""
    if not description.thresholds:
        return []
    now = description.thresholds[0]
    lines = [
        Line(
            cells=[
                text.count(effect.threshold),
                text.count(effect.ids),
                words.percent(effect.ids / now.ids),
                words.percent(effect.coverage),
                words.percent(effect.least_coverage),
                effect.least_covered,
            ],
            strong=effect is now,
        )
        for effect in description.thresholds
    ]
    caption = (
        "If tokens that occur fewer times than the threshold in training became unknown; the first row is "
        "this dataset"
    )
    columns = [
        *texts("Threshold"),
        *numbers("Ids"),
        *_shares("Share of ids", "Coverage", "Least covered"),
        *texts("Field"),
    ]
    return [Grid(caption, columns, lines)]


def origin(description: Description) -> list[Block]:
    """List the raw files."""
    files = description.inputs
    if not files:
        return []
    total = sum(file.bytes or 0 for file in files)
    heading = f"{len(files)} raw file{'s' if len(files) > 1 else ''}, {text.megabytes(total)} MB"
    table = grid(
        heading,
        [*texts("File"), *numbers("Bytes"), *texts("SHA-256")],
        [
            [Span(text=file.name), words.optional(file.bytes), code(file.sha256 or text.NONE)]
            for file in files
        ],
    )
    return [Folded(heading, [table])] if len(files) > FOLDED_FROM else [table]


def _shares(*headings: str) -> list[GridColumn]:
    return numbers(*(f"{heading},{text.SPACE}%" for heading in headings))
