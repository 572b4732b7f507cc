"""The page that describes a dataset."""

from __future__ import annotations

from afm_dist.dataset.description import Description
from afm_dist.report import dataset_sections as sections
from afm_dist.report import dataset_words as words
from afm_dist.report import text
from afm_dist.report.html import to_html
from afm_dist.report.view import Document, KeyFigures, Section


def page(description: Description) -> str:
    """Render the whole page; the same description gives the same text."""
    source = f" from a {description.source} log" if description.source else ""
    return to_html(
        Document(
            title=description.name,
            origin=f"afm-dist dataset{source}",
            lead=words.sentence(description),
            opening=[_headline(description)],
            sections=[
                Section("splits", "Splits", sections.splits(description)),
                Section("categorical", "Categorical fields", sections.categorical(description)),
                Section("numeric", "Numeric fields", sections.numeric(description)),
                Section("thresholds", "Thresholds", sections.thresholds(description)),
                Section("origin", "Origin", sections.origin(description)),
            ],
        )
    )


def _headline(description: Description) -> KeyFigures:
    figures = [
        (
            f"Rows in {split.name}",
            text.count(split.rows),
            f"{words.label_rate(split.label_rate)} positive",
        )
        for split in description.splits
    ]
    if description.thresholds:
        effect = description.thresholds[0]
        least = f"least of all {effect.least_covered}, {words.percent(effect.least_coverage)} %"
        of_tokens = f"of the training tokens; {least}"
        figures.append(("Coverage", f"{words.percent(effect.coverage)} %", of_tokens))
    return KeyFigures(figures)
