"""The words of a dataset's description, the same in the terminal and on the page."""

from __future__ import annotations

from afm_dist.dataset.description import CategoricalField, Description, NumericField
from afm_dist.report.text import NONE, SPACE, count, listed, significant

MISSING = "(missing)"
MOST_FREQUENT = "most frequent"
DEFINITIONS = (
    ("ids", "cardinality: one for each token that is frequent enough, and id 0 for the unknown"),
    ("ids for 90 %", f"how many of the most frequent of them make up 90 % of the training rows, id 0 not "
                     f"counted; {NONE}: all make up less"),
    ("coverage", "share of the training rows whose token has an id of its own"),
    ("missing", f"share of all rows, of every split, without a value; {MISSING} is a token like any other"),
    ("unknown", "share of the rows of that split whose token has id 0"),
    (MOST_FREQUENT, "tokens with their shares of the training rows"),
)  # fmt: skip
"""What the columns of the table of categorical fields mean."""


def token(value: str, length: int) -> str:
    """Show a raw token on one line: the missing one named, what cannot be seen escaped, cut when long.

    Args:
        value: The token; empty: the missing one.
        length: Most characters to show.
    """
    if not value:
        return MISSING
    # Of a token of megabytes only the ends are looked at.
    ends = value if len(value) <= 2 * length else f"{value[:length]}…{value[-length:]}"
    shown = visible(ends)
    if shown != shown.strip() or shown == MISSING:
        shown = f'"{shown}"'
    return cut(shown, length)


def visible(words: str) -> str:
    """Escape what cannot be seen, or would move a terminal's cursor."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in words)


def cut(words: str, length: int) -> str:
    """Cut words in the middle to at most so many characters."""
    if len(words) <= length:
        return words
    tail = (length - 1) // 2
    return f"{words[: length - 1 - tail]}…{words[len(words) - tail :]}"


def percent(share: float | None) -> str:
    """Show a share in percent, without the sign; 0 and 100 only for none and all."""
    if share is None:
        return NONE
    if share in (0, 1):
        return f"{100 * share:.0f}"
    digits = f"{100 * share:.1f}"
    return {"0.0": f"<{SPACE}0.1", "100.0": f">{SPACE}99.9"}.get(digits, digits)


def label_rate(share: float | None) -> str:
    """Show the label rate in percent, with the sign; rare labels to three digits."""
    if share is None:
        return NONE
    return f"{100 * share:.2f}{SPACE}%" if share >= 0.01 else f"{significant(100 * share)}{SPACE}%"


def optional(value: int | None) -> str:
    """Show a whole number that may not be known."""
    return NONE if value is None else count(value)


def rejected(description: Description) -> str:
    """Say how many rows were malformed: ``3 of 1,000``."""
    return f"{optional(description.rows_rejected)} of {optional(description.rows_read)}"


def made_of(field: CategoricalField | NumericField) -> str:
    """Name transform and raw column, as far as they are not what the field's name and kind say."""
    column = field.column if field.column != field.name else ""
    transform = field.transform if field.transform != "token" else ""
    return " of ".join(word for word in (transform, column) if word)


def sentence(description: Description) -> str:
    """Describe the dataset in one sentence."""
    fields = []
    if description.categorical:
        fields.append(
            f"{number(len(description.categorical), 'categorical field')} with {count(description.ids)} ids"
        )
    if description.numeric:
        fields.append(number(len(description.numeric), "numeric field"))
    return f"{count(sum(split.rows for split in description.splits))} rows, {listed(fields)}"


def number(value: int, what: str) -> str:
    """Count things: ``1 field``, ``1,200 fields``."""
    return f"{count(value)} {what}" if value == 1 else f"{count(value)} {what}s"
