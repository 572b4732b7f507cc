"""The report as GitHub Markdown, for a pull request: text and tables, no images."""

from __future__ import annotations

from collections.abc import Sequence

from afm_dist.report import text
from afm_dist.report.dataset_words import label_rate
from afm_dist.report.schema import Layer, Report
from afm_dist.report.summary import (
    attribution,
    auc_difference,
    baseline_of,
    commands,
    control_of,
    headline,
    ordered,
    sentence,
)

SPECIAL = str.maketrans({character: f"\\{character}" for character in "\\`*_[]|#~"})


def markdown(report: Report) -> str:
    """The whole of ``report.md``."""
    figures = headline(report)
    parts = [
        f"# {plain(report['title'])}",
        f"**{plain(sentence(figures))}** {plain(attribution(figures))}",
        _ships(report),
        _results(report),
        _ranks(report),
        _finetuning(report),
        _data(report),
        _notes(report),
        _run(report),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def plain(value: object) -> str:
    """A value as text that Markdown shows as it is, on one line."""
    escaped = str(value).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return " ".join(escaped.translate(SPECIAL).split())


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> str:
    """A table whose first ``left`` columns are text and the others numbers."""
    rule = ["---" if index < left else "--:" for index in range(len(columns))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (columns, rule, *rows))


def _ships(report: Report) -> str:
    shipped = report["shipped"]
    lines = [f"Ships: **{plain(shipped['name'])}**, {text.STAGE_WORDS[shipped['stage']]}."]
    if shipped.get("reason"):
        lines.append(f"Why: {plain(shipped['reason'])}.".replace("..", "."))
    if shipped.get("checkpoint"):
        lines.append(f"Checkpoint: {plain(shipped['checkpoint'])}")
    return " ".join(lines)


def _results(report: Report) -> str:
    rows = report["rows"]
    baseline = baseline_of(rows)
    shipped = (report["shipped"]["name"], report["shipped"]["stage"])
    columns = [
        *("Model", "Stage", "AUC", "vs baseline", "vs control", "Log loss"),
        *("MB", "Smaller", "Parameters", "Rows/s", "Faster", "Range"),
    ]
    body = []
    for row in ordered(rows):
        control = control_of(rows, row)
        name = plain(row["name"])
        note = f" ({plain(row['note'])})" if row.get("note") else ""
        body.append(
            [
                f"**{name}**" if (row["name"], row["stage"]) == shipped else name,
                text.STAGE_WORDS[row["stage"]] + note,
                text.measured(row["auc"]),
                text.NONE if row is baseline else text.signed(auc_difference(row, baseline)),
                text.signed(auc_difference(row, control)),
                text.measured(row["log_loss"]),
                text.megabytes(row["bytes"]),
                text.ratio(baseline["bytes"] / row["bytes"]),
                text.count(row["parameters"]),
                text.count(row["rows_per_second"]),
                text.ratio(row["throughput_ratio"]),
                text.spread(row.get("throughput_ratio_min"), row.get("throughput_ratio_max")) or text.NONE,
            ]
        )
    explanation = (
        "Bold ships. “vs control” compares with the uncompressed model after as many rounds of the same "
        "fine-tuning (none: the baseline itself). MB are 10⁶ bytes of the checkpoint; “Faster” is "
        "throughput over the baseline's, “Range” its smallest and largest measurement."
    )
    return f"## Results\n\n{markdown_table(columns, body, 2)}\n\n{explanation}"


def _ranks(report: Report) -> str:
    layers = report.get("layers")
    if not layers:
        return ""
    body = [[plain(layer["name"]), plain(layer["method"]), *_rank_or_details(layer)] for layer in layers]
    table = markdown_table(["Layer", "Method", "Rank", "Variance kept"], body, 2)
    if len(body) > 12:
        table = f"<details><summary>{len(body)} layers and tables</summary>\n\n{table}\n\n</details>"
    return (
        f"## Ranks\n\nShares are of the variance (sum of eigenvalues), not of the singular values.\n\n{table}"
    )


def _rank_or_details(layer: Layer) -> tuple[str, str]:
    """Rank and kept variance; of a method without ranks what it says of itself."""
    if "rank" in layer:
        return f"{layer['rank']} of {layer['width']}", text.share(layer["kept_energy"])
    said = "; ".join(f"{title}: {value}" for title, value in layer.get("details", {}).items())
    return plain(said or text.NONE), text.NONE


def _finetuning(report: Report) -> str:
    candidates = report.get("finetuning")
    if not candidates:
        return ""
    body = []
    for candidate in candidates:
        kept = next(point for point in candidate["curve"] if point["step"] == candidate["kept_step"])
        body.append(
            [
                plain(candidate["name"]),
                plain(candidate.get("kept", "")),
                plain(candidate.get("reason", "")),
                text.count(candidate["kept_step"]),
                text.score(kept["validation_auc"]),
            ]
        )
    columns = ["Candidate", "Kept", "Why", "Step", "Validation AUC"]
    return f"## What was kept\n\n{markdown_table(columns, body, 3)}"


def _notes(report: Report) -> str:
    notes = report.get("notes")
    return "## Notes\n\n" + "\n".join(f"- {plain(note)}" for note in notes) if notes else ""


def _data(report: Report) -> str:
    """Which rows: enough to see whether two reports are about the same."""
    content = report.get("data")
    if not content:
        return ""
    facts = [plain(content["name"])]
    if content.get("preset"):
        facts.append(f"preset {plain(content['preset'])}")
    for kind, number in (content.get("fields") or {}).items():
        facts.append(f"{number} {plain(kind)} fields")
    if "ids" in content:
        facts.append(f"{text.count(content['ids'])} ids")
    for name, split in (content.get("splits") or {}).items():
        rate = f" ({label_rate(split['positive_share'])} positive)" if "positive_share" in split else ""
        facts.append(f"{text.count(split['rows'])} rows in {plain(name)}{rate}")
    if content.get("fingerprint"):
        facts.append(f"fingerprint {plain(content['fingerprint'])}")
    return f"## Data\n\n{', '.join(facts)}."


def _run(report: Report) -> str:
    lines = [
        f"{plain(each['what'])}:\n\n{fenced(each['command'])}" if number else fenced(each["command"])
        for number, each in enumerate(commands(report))
    ]
    flat = dict(report.get("environment") or {})
    flat.update(flat.pop("packages", None) or {})
    if flat:
        lines.append(", ".join(f"{plain(key)} {plain(value)}" for key, value in flat.items()))
    if report.get("created"):
        lines.append(f"Created {plain(report['created'])}")
    return "## Run\n\n" + "\n\n".join(lines) if lines else ""


def fenced(command: str) -> str:
    """A command as a block to copy."""
    fence = "`" * 3
    while fence in command:  # a fence must be longer than any run of backticks inside
        fence += "`"
    return f"{fence}sh\n{command}\n{fence}"
