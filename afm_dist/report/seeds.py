"""The report over several seeds: mean ± deviation, and which differences are more than noise."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import NotRequired, TypedDict, cast

from rich.table import Table

from afm_dist.errors import DataError
from afm_dist.evaluation.paired import SIGNIFICANT, paired
from afm_dist.report import text
from afm_dist.report.looks import look_of, marked
from afm_dist.report.schema import Report, Row, Stage
from afm_dist.report.summary import auc_difference, baseline_of, control_of, find, ordered
from afm_dist.report.terminal import to_terminal
from afm_dist.report.view import Document, Grid, GridColumn, Inline, Items, Line, Paragraph, Section, Span
from afm_dist.report.writing import write

FORMAT_VERSION = 1
COLUMNS = (
    GridColumn("Model", text=True, short="model", breaks=True),
    GridColumn("Fine-tuning", text=True, short="stage"),
    GridColumn("AUC", short="AUC"),
    GridColumn("vs baseline", short="vs base"),
    GridColumn("vs control", short="vs ctrl"),
    GridColumn("Log loss"),
    GridColumn("Smaller", short="smaller"),
    GridColumn("Faster"),
)
Measured = tuple[Row, Row, Row | None]
"""A model, the baseline and the control of the same seed."""


class Spread(TypedDict):
    """A figure over the seeds."""

    mean: float
    deviation: float
    """Sample standard deviation."""


class Difference(Spread):
    """A difference between two models of the same seed, over the seeds."""

    p: float | None
    """Of a paired t-test; null where all seeds have the same difference."""
    noise: bool
    """Whether chance explains it: p is 0.05 or more."""


class SeedsRow(TypedDict):
    """One model."""

    name: str
    stage: Stage
    auc: Spread | None
    """null where it is undefined for a seed, as the log loss."""
    log_loss: Spread | None
    smaller: float
    """Bytes of the baseline over its bytes, mean."""
    throughput_ratio: float
    """Over the baseline's, mean."""
    vs_baseline: NotRequired[Difference]
    vs_control: NotRequired[Difference]


class SeedsReport(TypedDict):
    """All of ``report.json``."""

    format_version: int
    title: str
    seeds: list[int]
    rows: list[SeedsRow]
    shipped: str
    """Name of the model that every seed ships."""
    same_rows: bool
    """Whether all seeds have the same dataset; the demo makes one for each."""
    same_baseline: bool
    """Whether all seeds began with the same checkpoint."""


def over_seeds(reports: Mapping[int, Report]) -> SeedsReport:
    """Summarise the reports of several seeds.

    Args:
        reports: By seed, two or more, of the same options otherwise.

    Raises:
        DataError: the reports have other rows, or ship other models.
    """
    first = next(iter(reports.values()))
    keys = [(row["name"], row["stage"]) for row in ordered(first["rows"])]
    shipped = {report["shipped"]["name"] for report in reports.values()}
    for seed, report in reports.items():
        if {(row["name"], row["stage"]) for row in report["rows"]} != set(keys) or len(shipped) > 1:
            raise DataError(
                f"the report of seed {seed} has other models than that of seed {next(iter(reports))}"
            )
    return {
        "format_version": FORMAT_VERSION,
        "title": first["title"],
        "seeds": list(reports),
        "rows": [_row(measured(list(reports.values()), name, stage)) for name, stage in keys],
        "shipped": shipped.pop(),
        "same_baseline": bool(first.get("config", {}).get("checkpoint")),
        "same_rows": len({report.get("data", {}).get("fingerprint") for report in reports.values()}) == 1,
    }


def measured(reports: Sequence[Report], name: str, stage: Stage) -> list[Measured]:
    """Find a model in the reports of all seeds."""
    found: list[Measured] = []
    for report in reports:
        row = find(report["rows"], name, stage)
        assert row is not None, "all seeds have the same rows"
        found.append((row, baseline_of(report["rows"]), control_of(report["rows"], row)))
    return found


def differences(seeds: Sequence[Measured]) -> dict[str, list[float]]:
    """Subtract baseline and control from a model, seed by seed; left out where that is undefined for one."""
    against = {
        "vs_baseline": [auc_difference(row, baseline) for row, baseline, _ in seeds],
        "vs_control": [auc_difference(row, control) for row, _, control in seeds],
    }
    if seeds[0][0]["name"] == "baseline":
        del against["vs_baseline"]
    found = {key: defined(values) for key, values in against.items()}
    return {key: values for key, values in found.items() if values is not None}


def _row(seeds: Sequence[Measured]) -> SeedsRow:
    row = seeds[0][0]
    found: SeedsRow = {
        "name": row["name"],
        "stage": row["stage"],
        "auc": _spread([row["auc"] for row, _, _ in seeds]),
        "log_loss": _spread([row["log_loss"] for row, _, _ in seeds]),
        "smaller": statistics.mean(baseline["bytes"] / row["bytes"] for row, baseline, _ in seeds),
        "throughput_ratio": statistics.mean(row["throughput_ratio"] for row, _, _ in seeds),
    }
    against = {key: _difference(values) for key, values in differences(seeds).items()}
    return cast(SeedsRow, {**found, **against})


def defined(values: Sequence[float | None]) -> list[float] | None:
    """Give the figures of all seeds; None where one is undefined: of the others the mean is another."""
    known = [value for value in values if value is not None]
    return known if len(known) == len(values) else None


def _spread(values: Sequence[float | None]) -> Spread | None:
    known = defined(values)
    return None if known is None else {"mean": statistics.mean(known), "deviation": statistics.stdev(known)}


def _difference(values: Sequence[float]) -> Difference:
    test = paired(values)
    return {"mean": test.mean, "deviation": test.deviation, "p": test.p, "noise": test.noise}


def write_seeds_report(content: SeedsReport, output: str) -> None:
    """Write ``report.json``, ``report.md`` and ``report.html`` into a folder beside those of the seeds."""
    write(content, document(content), output)


def seeds_table(content: SeedsReport) -> Table:
    """Make the table for the terminal."""
    caption = f"mean ± deviation over the seeds · {text.NOISE}: within noise · bold: ships"
    return to_terminal(_grid(content), _title(content), caption)


def sentence(content: SeedsReport) -> str:
    """Give the result in one sentence."""
    row = next(row for row in content["rows"] if _ships(content, row))
    words = (
        f"{text.ratio(row['smaller'])} smaller; AUC {_score(row['auc'])} over {len(content['seeds'])} seeds"
    )
    for difference, what in ((row.get("vs_baseline"), "baseline"), (row.get("vs_control"), "control")):
        if difference is not None:
            words += f", {_signed(difference)} against the {what}{_verdict(difference)}"
    return f"{words}."


def _verdict(difference: Difference) -> str:
    p = difference["p"]
    return f" (within noise, p = {p:.2f})" if difference["noise"] and p is not None else ""


def _ships(content: SeedsReport, row: SeedsRow) -> bool:
    return row["name"] == content["shipped"] and row["stage"] == "after-finetune"


def _title(content: SeedsReport) -> str:
    return f"{content['title']}, seeds {', '.join(map(str, content['seeds']))}"


def _score(value: Spread | None) -> str:
    return text.UNDEFINED if value is None else text.deviating(text.score(value["mean"]), value["deviation"])


def _signed(value: Difference, *, noise: bool = False) -> str:
    return text.deviating(text.signed(value["mean"]), value["deviation"], noise=noise)


def _grid(content: SeedsReport) -> Grid:
    lines = []
    for row in content["rows"]:
        ships = _ships(content, row)
        against = (row.get("vs_baseline"), row.get("vs_control"))
        cells: list[Inline] = [
            marked(row["name"], badge="ships" if ships else ""),
            text.FINE_TUNING[row["stage"]],
            _score(row["auc"]),
            *(text.NONE if one is None else _signed(one, noise=one["noise"]) for one in against),
            _score(row["log_loss"]),
            text.ratio(row["smaller"]),
            text.ratio(row["throughput_ratio"]),
        ]
        lines.append(Line(cells=cells, strong=ships, group=look_of(row["name"]).label))
    return Grid("Quality on the test split, size and speed over the seeds", COLUMNS, lines)


def _notes(content: SeedsReport) -> list[str]:
    return [
        f"Mean ± sample deviation over {len(content['seeds'])} seeds. Differences are between models of the "
        f"same seed; ≈ marks those within noise: by a paired t-test chance alone exceeds them with p ≥ "
        f"{SIGNIFICANT}. Few seeds find only large differences, so noise does not mean equal.",
        "All seeds are scored on the same test rows: how much other rows would move an AUC is not in the "
        "deviations; each seed's report says it."
        if content["same_rows"]
        else "Each seed has a log of its own, so the deviations are also those of the rows.",
        "“vs control” compares with the uncompressed model after as many rounds of the same fine-tuning.",
        *(
            [
                "All seeds began with the same checkpoint: what comes before fine-tuning is the same for "
                "all, and the deviations are those of fine-tuning alone."
            ]
            if content["same_baseline"]
            else []
        ),
    ]


def document(content: SeedsReport) -> Document:
    """Lay out the report over the seeds."""
    links: list[str | Span] = ["The report of each: "]
    for seed in content["seeds"]:
        separator = ", " if len(links) > 1 else ""
        links += [separator, Span(text=f"seed {seed}", report=f"../seed-{seed}/report")]
    return Document(
        title=_title(content),
        origin="afm-dist compression report over seeds",
        lead=sentence(content),
        sections=[
            Section("results", "Results", [_grid(content), Items(_notes(content))]),
            Section("seeds", "Seeds", [Paragraph(links)]),
        ],
    )
