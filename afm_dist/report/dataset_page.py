"""The page that describes a dataset."""

from __future__ import annotations

from afm_dist.dataset.description import Description
from afm_dist.report import dataset_sections as sections
from afm_dist.report import dataset_words as words
from afm_dist.report import text
from afm_dist.report.document import document
from afm_dist.report.elements import Html, figures, plain

SECTIONS = (
    ("splits", "Splits", sections.splits),
    ("categorical", "Categorical fields", sections.categorical),
    ("numeric", "Numeric fields", sections.numeric),
    ("thresholds", "Thresholds", sections.thresholds),
    ("origin", "Origin", sections.origin),
)


def page(description: Description) -> str:
    """The whole page; the same description gives the same text."""
    parts = [(anchor, heading, build(description)) for anchor, heading, build in SECTIONS]
    return document(description.name, _header(description), parts)


def _header(description: Description) -> Html:
    source = f" from a {description.source} log" if description.source else ""
    return Html(
        f"<h1>{plain(description.name)}</h1>\n"
        f'<p class="origin">afm-dist dataset{plain(source)}</p>\n'
        f'<p class="lead">{plain(words.sentence(description))}</p>\n{_figures(description)}'
    )


def _figures(description: Description) -> Html:
    blocks = []
    for split in description.splits:
        blocks.append(
            (
                f"Rows in {split.name}",
                text.count(split.rows),
                f"{words.label_rate(split.label_rate)} positive",
            )
        )
    if description.thresholds:
        effect = description.thresholds[0]
        blocks.append(
            (
                "Coverage",
                f"{words.percent(effect.coverage)} %",
                f"of the training tokens; least of all {effect.least_covered}, "
                f"{words.percent(effect.least_coverage)} %",
            )
        )
    return figures(blocks)
