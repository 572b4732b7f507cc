"""Sections about a dataset: splits, categorical and numeric fields, thresholds, origin."""

from __future__ import annotations

from afm_dist.dataset.description import CategoricalField, Description, InputFile
from afm_dist.report import dataset_words as words
from afm_dist.report import text
from afm_dist.report.elements import (
    EMPTY,
    Grid,
    Html,
    Line,
    code,
    columns,
    definitions,
    disclosure,
    figure,
    grid,
    join,
    plain,
)
from afm_dist.report.plots import vocabularies

PLOTTED_FIELDS = 60
FOLDED_FROM = 6
TOKEN_LENGTH = 32
LONG_NAME = 20


def splits(description: Description) -> Html:
    """Rows, label rate and files of each split."""
    lines = [
        Line(
            cells=[
                plain(split.name),
                plain(text.count(split.rows)),
                plain(words.label_rate(split.label_rate)),
                plain(text.count(split.shards)),
                plain(text.megabytes(split.bytes)),
            ]
        )
        for split in description.splits
    ]
    table = Grid(
        caption="Rows of each split",
        columns=["Split", "Rows", "Positive", "Shards", "MB"],
        groups=[("", lines)],
    )
    return columns(grid(table), definitions(_protocol(description)))


def _protocol(description: Description) -> list[tuple[str, Html]]:
    facts = [
        ("Label", code(description.label)),
        ("Preset", code(description.preset)),
        ("Threshold", plain(words.optional(description.threshold))),
        ("Seed", plain(description.seed)),
        ("Rejected rows", plain(words.rejected(description))),
    ]
    if description.best is not None:
        best = f"AUC {text.score(description.best.auc)}, log loss {text.score(description.best.log_loss)}"
        where = f" on {description.best.split}" if description.best.split else ""
        facts.append((f"Best possible (Bayes){where}", plain(best)))
    return facts


def categorical(description: Description) -> Html:
    """The fields of ids: figures first, then all of them in numbers."""
    return join([ids(description), categorical_numbers(description)])


def ids(description: Description) -> Html:
    """Which ids the training rows hold, and how many ids each field has, as figures."""
    fields = description.categorical
    if not fields:
        return EMPTY
    largest = sorted(fields, key=lambda field: -field.cardinality)[:PLOTTED_FIELDS]
    plotted = [field for field in fields if field in largest]
    of_all = "" if len(plotted) == len(fields) else f" The {len(plotted)} fields with most ids."
    return columns(
        figure(
            vocabularies.rows_by_rank(plotted),
            "Which ids the training rows hold",
            plain(f"From the most frequent id of each field to the rare ones.{of_all}"),
        ),
        figure(
            vocabularies.ids_by_field(plotted),
            "How many ids each field has",
            plain(f"An embedding table has a row for each. Linear axis.{of_all}"),
        ),
    )


def categorical_numbers(description: Description) -> Html:
    """All fields of ids in numbers, and what the columns mean."""
    if not description.categorical:
        return EMPTY
    tokens = _with_tokens(description)
    meanings = [pair for pair in words.DEFINITIONS if tokens or pair[0] != words.MOST_FREQUENT]
    return join(
        [
            grid(_categorical_grid(description)),
            definitions([(name.capitalize(), plain(meaning)) for name, meaning in meanings]),
        ]
    )


def _with_tokens(description: Description) -> bool:
    """Whether the most frequent tokens are known; a report that is passed around leaves them out."""
    return any(field.top for field in description.categorical)


def _categorical_grid(description: Description) -> Grid:
    headings = ["Field", "Ids", f"Ids for 90{text.SPACE}%", _in_percent("Coverage"), _in_percent("Missing")]
    headings += [_in_percent(f"Unknown in {name}") for name in description.held_out]
    tokens = _with_tokens(description)
    return Grid(
        caption="Categorical fields",
        columns=[*headings, *(["Most frequent"] if tokens else [])],
        words=(0, len(headings)) if tokens else (0,),
        groups=[("", [_categorical_line(field, description, tokens) for field in description.categorical])],
    )


def _categorical_line(field: CategoricalField, description: Description, tokens: bool) -> Line:
    unknown = (field.unknown_share.get(name) for name in description.held_out)
    shares = [field.coverage, field.missing_share, *unknown]
    top = (
        (code(words.token(token.token, TOKEN_LENGTH)), plain(words.percent(token.share)))
        for token in field.top
    )
    made_of = words.made_of(field)
    return Line(
        cells=[
            _name(field.name),
            plain(text.count(field.cardinality)),
            plain(words.optional(field.ids_for_90_percent)),
            *(plain(words.percent(share)) for share in shares),
            *(
                [join((Html(f"{token}{text.SPACE}{share}{text.SPACE}%") for token, share in top), ", ")]
                if tokens
                else []
            ),
        ],
        note=plain(f"made by {made_of}") if made_of else EMPTY,
    )


def numeric(description: Description) -> Html:
    """The fields of numbers."""
    if not description.numeric:
        return EMPTY
    lines = [
        Line(
            cells=[
                _name(field.name),
                plain(words.percent(field.missing_share)),
                plain(f"{field.mean:.4g}"),
                plain(f"{field.deviation:.4g}"),
                plain(words.made_of(field) or text.NONE),
            ]
        )
        for field in description.numeric
    ]
    table = Grid(
        caption="Numeric fields: mean and deviation of the transformed values over the training rows",
        columns=["Field", _in_percent("Missing"), "Mean", "Deviation", "Transform"],
        words=(0, 4),
        groups=[("", lines)],
    )
    return grid(table)


def thresholds(description: Description) -> Html:
    """What a higher threshold would leave."""
    if not description.thresholds:
        return EMPTY
    now = description.thresholds[0]
    lines = [
        Line(
            cells=[
                plain(text.count(effect.threshold)),
                plain(text.count(effect.ids)),
                plain(words.percent(effect.ids / now.ids)),
                plain(words.percent(effect.coverage)),
                plain(words.percent(effect.least_coverage)),
                plain(effect.least_covered),
            ],
            style="ships-row" if effect is now else "",
        )
        for effect in description.thresholds
    ]
    shares = [_in_percent(name) for name in ("Share of ids", "Coverage", "Least covered")]
    table = Grid(
        caption="If tokens that occur fewer times than the threshold in training became unknown; the first "
        "row is this dataset",
        columns=[
            "Threshold",
            "Ids",
            *shares,
            "Field",
        ],
        words=(0, 5),
        groups=[("", lines)],
    )
    return grid(table)


def origin(description: Description) -> Html:
    """The raw files."""
    if not description.inputs:
        return EMPTY
    total = sum(file.bytes or 0 for file in description.inputs)
    number = len(description.inputs)
    heading = f"{number} raw file{'s' if number > 1 else ''}, {text.megabytes(total)} MB"
    table = grid(
        Grid(
            caption=heading,
            columns=["File", "Bytes", "SHA-256"],
            words=(0, 2),
            groups=[("", [_input_line(file) for file in description.inputs])],
        )
    )
    return disclosure(heading, table) if number > FOLDED_FROM else table


def _input_line(file: InputFile) -> Line:
    return Line(cells=[_name(file.name), plain(words.optional(file.bytes)), code(file.sha256 or text.NONE)])


def _in_percent(heading: str) -> str:
    return f"{heading},{text.SPACE}%"


def _name(name: str) -> Html:
    return Html(f'<span class="long">{plain(name)}</span>') if len(name) > LONG_NAME else plain(name)
