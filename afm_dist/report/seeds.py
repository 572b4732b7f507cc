"""The report over several seeds: mean ± deviation, and which differences are more than noise."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import NotRequired, TypedDict

from rich.table import Table

from afm_dist import storage
from afm_dist.errors import DataError
from afm_dist.evaluation.paired import SIGNIFICANT, paired
from afm_dist.report import text
from afm_dist.report.document import document
from afm_dist.report.elements import Grid, Html, Line, grid, join, paragraph, plain
from afm_dist.report.markdown import markdown_table
from afm_dist.report.markdown import plain as escaped
from afm_dist.report.schema import Report, Row, Stage
from afm_dist.report.summary import auc_difference, baseline_of, control_of, find, ordered
from afm_dist.report.terminal import add_row, terminal_table

FORMAT_VERSION = 1
HEADINGS = ("Model", "Fine-tuning", "AUC", "vs baseline", "vs control", "Log loss", "Smaller", "Faster")


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
    """What the reports of several seeds amount to.

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
        "rows": [_row(list(reports.values()), name, stage) for name, stage in keys],
        "shipped": shipped.pop(),
        "same_baseline": bool(first.get("config", {}).get("checkpoint")),
        "same_rows": len({report.get("data", {}).get("fingerprint") for report in reports.values()}) == 1,
    }


def _row(reports: Sequence[Report], name: str, stage: Stage) -> SeedsRow:
    rows: list[tuple[Row, Row, Row | None]] = []
    for report in reports:
        row = find(report["rows"], name, stage)
        assert row is not None
        rows.append((row, baseline_of(report["rows"]), control_of(report["rows"], row)))
    found: SeedsRow = {
        "name": name,
        "stage": stage,
        "auc": _spread([row["auc"] for row, _, _ in rows]),
        "log_loss": _spread([row["log_loss"] for row, _, _ in rows]),
        "smaller": statistics.mean(baseline["bytes"] / row["bytes"] for row, baseline, _ in rows),
        "throughput_ratio": statistics.mean(row["throughput_ratio"] for row, _, _ in rows),
    }
    if name != "baseline":
        against = _difference([auc_difference(row, baseline) for row, baseline, _ in rows])
        if against is not None:
            found["vs_baseline"] = against
    controls = _difference([auc_difference(row, control) for row, _, control in rows])
    if controls is not None:
        found["vs_control"] = controls
    return found


def defined(values: Sequence[float | None]) -> list[float] | None:
    """The figures of all seeds; None where that of one is undefined: of the others the mean is another."""
    known = [value for value in values if value is not None]
    return known if len(known) == len(values) else None


def _spread(values: Sequence[float | None]) -> Spread | None:
    known = defined(values)
    return None if known is None else {"mean": statistics.mean(known), "deviation": statistics.stdev(known)}


def _difference(values: Sequence[float | None]) -> Difference | None:
    known = defined(values)
    if known is None:
        return None
    test = paired(known)
    return {"mean": test.mean, "deviation": test.deviation, "p": test.p, "noise": test.noise}


def write_seeds_report(content: SeedsReport, output: str) -> None:
    """Write ``report.json``, ``report.md`` and ``report.html`` into a folder beside those of the seeds."""
    storage.write_json(storage.join(output, "report.json"), dict(content))
    storage.write_bytes(storage.join(output, "report.md"), _markdown(content).encode())
    storage.write_bytes(storage.join(output, "report.html"), _page(content).encode())


def seeds_table(content: SeedsReport) -> Table:
    """For the terminal."""
    result = terminal_table(
        f"{content['title']}, seeds {_seeds(content)}",
        "mean ± deviation over the seeds · ~: within noise",
        names=("model",),
        words=("stage",),
        figures=("AUC", "vs base", "vs ctrl", "smaller"),
    )
    for row in content["rows"]:
        cells = [row["name"], text.FINE_TUNING[row["stage"]], *_figures(row, "~")]
        add_row(result, (*cells[:5], cells[6]), ships=_ships(content, row))
    return result


def sentence(content: SeedsReport) -> str:
    """The result in one sentence."""
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


def _seeds(content: SeedsReport) -> str:
    return ", ".join(str(seed) for seed in content["seeds"])


def _score(value: Spread | None) -> str:
    return text.UNDEFINED if value is None else f"{text.score(value['mean'])} ± {value['deviation']:.4f}"


def _signed(value: Spread) -> str:
    return f"{text.signed(value['mean'])} ± {value['deviation']:.4f}"


def _figures(row: SeedsRow, noise: str) -> list[str]:
    """Without name and stage; a difference within noise is marked."""
    differences = [
        text.NONE if found is None else (f"{noise} " if found["noise"] else "") + _signed(found)
        for found in (row.get("vs_baseline"), row.get("vs_control"))
    ]
    return [
        _score(row["auc"]),
        *differences,
        _score(row["log_loss"]),
        text.ratio(row["smaller"]),
        text.ratio(row["throughput_ratio"]),
    ]


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


def _markdown(content: SeedsReport) -> str:
    body = [
        [
            f"**{escaped(row['name'])}**" if _ships(content, row) else escaped(row["name"]),
            text.FINE_TUNING[row["stage"]],
            *_figures(row, "≈"),
        ]
        for row in content["rows"]
    ]
    links = ", ".join(f"[seed {seed}](../seed-{seed}/report/report.md)" for seed in content["seeds"])
    parts = [
        f"# {escaped(content['title'])}, seeds {_seeds(content)}",
        f"**{escaped(sentence(content))}**",
        markdown_table(HEADINGS, body, 2),
        "\n".join(f"- {escaped(note)}" for note in _notes(content)),
        f"Reports: {links}",
    ]
    return "\n\n".join(parts) + "\n"


def _page(content: SeedsReport) -> str:
    lines = [
        Line(
            cells=[
                plain(row["name"]),
                plain(text.FINE_TUNING[row["stage"]]),
                *(plain(figure) for figure in _figures(row, "≈")),
            ],
            style="ships-row" if _ships(content, row) else "",
        )
        for row in content["rows"]
    ]
    table = Grid(
        caption="Quality on the test split, size and speed over the seeds",
        columns=HEADINGS,
        words=(0, 1),
        groups=[("", lines)],
    )
    header = Html(
        f"<h1>{plain(content['title'])}</h1>\n"
        f'<p class="origin">afm-dist compression report over the seeds {_seeds(content)}</p>\n'
        f'<p class="lead">{plain(sentence(content))}</p>'
    )
    links = join(
        (Html(f'<a href="../seed-{seed}/report/report.html">seed {seed}</a>') for seed in content["seeds"]),
        ", ",
    )
    notes = join(paragraph(plain(note), "small muted") for note in _notes(content))
    return document(
        content["title"],
        header,
        [
            ("results", "Results", join([grid(table), notes])),
            ("seeds", "Seeds", paragraph(Html(f"The report of each: {links}"))),
        ],
    )
