"""The section about the data: what the models were trained and measured on."""

from __future__ import annotations

from afm_dist.dataset.description_json import from_json
from afm_dist.report import dataset_sections, text
from afm_dist.report import dataset_words as words
from afm_dist.report.schema import Data, Report
from afm_dist.report.view import Beside, Block, Facts, Folded, Inline, code, grid, numbers, texts


def data(report: Report) -> list[Block]:
    """Show facts and splits; where the data is described, its fields too, their numbers folded away."""
    content = report.get("data")
    if not content:
        return []
    return [Beside([Facts(facts_of_data(content)), *splits(content)]), *_fields(content)]


def facts_of_data(content: Data) -> list[tuple[str, Inline]]:
    """List what tells two datasets apart."""
    facts: list[tuple[str, Inline]] = [("Name", content["name"])]
    if content.get("preset"):
        facts.append(("Preset", code(content["preset"])))
    if content.get("fields"):
        facts.append(
            ("Fields", text.listed([f"{count} {kind}" for kind, count in content["fields"].items()]))
        )
    if "ids" in content:
        facts.append(("Ids in the vocabularies", text.count(content["ids"])))
    if "bayes_auc" in content:
        best = text.best_possible(
            content["bayes_auc"], content.get("bayes_log_loss"), content.get("bayes_split")
        )
        facts.append(best)
    if content.get("fingerprint"):
        facts.append(("Fingerprint", code(content["fingerprint"])))
    return facts


def splits(content: Data) -> list[Block]:
    """List rows and label rate of each split."""
    cells = [
        [
            name,
            text.count(split["rows"]),
            words.label_rate(split.get("positive_share")),
        ]
        for name, split in (content.get("splits") or {}).items()
    ]
    return [grid("Splits", [*texts("Split"), *numbers("Rows", "Positive")], cells)] if cells else []


def _fields(content: Data) -> list[Block]:
    """Draw the ids; list every field, folded away."""
    described = content.get("description")
    description = None if described is None else from_json(described, source="report")
    if description is None:
        return []
    folded = (
        ("categorical", description.categorical, dataset_sections.categorical_numbers),
        ("numeric", description.numeric, dataset_sections.numeric),
    )
    return [
        *dataset_sections.ids(description),
        *(
            Folded(f"{words.number(len(fields), f'{kind} field')} in numbers", build(description))
            for kind, fields, build in folded
            if fields
        ),
    ]
