"""The section about the data: what the models were trained and measured on."""

from __future__ import annotations

from afm_dist.dataset.description import Description
from afm_dist.dataset.description_json import from_json
from afm_dist.report import dataset_sections, text
from afm_dist.report import dataset_words as words
from afm_dist.report.elements import (
    EMPTY,
    Grid,
    Html,
    Line,
    code,
    columns,
    definitions,
    disclosure,
    grid,
    join,
    plain,
)
from afm_dist.report.schema import Data, Report


def data(report: Report) -> Html:
    """Facts and splits; where the data is described, its fields too, their numbers folded away."""
    content = report.get("data")
    if not content:
        return EMPTY
    described = content.get("description")
    description = None if described is None else from_json(described, source="report")
    return join([columns(definitions(_facts(content)), _splits(content)), _fields(description)])


def _facts(content: Data) -> list[tuple[str, Html]]:
    facts = [("Name", plain(content["name"]))]
    if content.get("preset"):
        facts.append(("Preset", code(content["preset"])))
    if content.get("fields"):
        fields = text.listed([f"{number} {kind}" for kind, number in content["fields"].items()])
        facts.append(("Fields", plain(fields)))
    if "ids" in content:
        facts.append(("Ids in the vocabularies", plain(text.count(content["ids"]))))
    if "bayes_auc" in content:
        where = f" on {content['bayes_split']}" if content.get("bayes_split") else ""
        best = f"AUC {text.score(content['bayes_auc'])}"
        if "bayes_log_loss" in content:
            best += f", log loss {text.score(content['bayes_log_loss'])}"
        facts.append((f"Best possible (Bayes){where}", plain(best)))
    if content.get("fingerprint"):
        facts.append(("Fingerprint", code(content["fingerprint"])))
    return facts


def _splits(content: Data) -> Html:
    lines = [
        Line(
            cells=[
                plain(name),
                plain(text.count(split["rows"])),
                plain(
                    f"{100 * split['positive_share']:.2f}{text.SPACE}%"
                    if "positive_share" in split
                    else text.NONE
                ),
            ]
        )
        for name, split in (content.get("splits") or {}).items()
    ]
    splits = Grid(caption="Splits", columns=["Split", "Rows", "Positive"], groups=[("", lines)])
    return grid(splits) if lines else EMPTY


def _fields(description: Description | None) -> Html:
    """Figures of the ids; every field in numbers, folded away."""
    if description is None:
        return EMPTY
    parts = (
        (
            words.number(len(description.categorical), "categorical field"),
            dataset_sections.categorical_numbers,
        ),
        (words.number(len(description.numeric), "numeric field"), dataset_sections.numeric),
    )
    folded = [
        disclosure(f"{heading} in numbers", content)
        for heading, build in parts
        if (content := build(description))
    ]
    return join([dataset_sections.ids(description), *folded])
