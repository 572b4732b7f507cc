"""``report.html`` and ``report.md`` of a comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from rich.table import Table

from afm_dist.report import text
from afm_dist.report.comparison import ComparedDifference, ComparedRow, ComparedRun, Comparison
from afm_dist.report.data_section import facts_of_data, splits
from afm_dist.report.looks import marked
from afm_dist.report.run_sections import facts_of
from afm_dist.report.schema import Data
from afm_dist.report.summary import NO_AUC, scored
from afm_dist.report.terminal import to_terminal
from afm_dist.report.view import (
    Beside,
    Block,
    Code,
    Document,
    Facts,
    Folded,
    Grid,
    GridColumn,
    Inline,
    Items,
    Line,
    Paragraph,
    Part,
    Plot,
    Section,
    code,
    grid,
    texts,
)
from afm_dist.report.writing import write

COLUMNS = (
    GridColumn("Model", text=True, short="model", breaks=True),
    GridColumn("Fine-tuning", text=True),
    GridColumn("AUC", short="AUC"),
    GridColumn("vs baseline"),
    GridColumn("vs control", short="vs ctrl"),
    GridColumn("Log loss", short="logloss"),
    GridColumn("MB", short="MB"),
    GridColumn("Smaller", short="smaller"),
    GridColumn("Parameters"),
    GridColumn("Rows/s"),
    GridColumn("Faster", short="faster"),
)


def write_comparison(content: Comparison, output: str) -> str:
    """Write ``report.json``, ``report.md`` and ``report.html``.

    Args:
        content: Of the comparison.
        output: Folder to write to, a local path or a URI.

    Returns:
        The location of ``report.html``.
    """
    return write(content, document(content), output)


def table(content: Comparison) -> Table:
    """Make the table for the terminal: a row a run, of what it ships."""
    lines = [Line(cells=[row["run"], *_line(row, "").cells]) for row in content["rows"] if row["ships"]]
    columns = [GridColumn("Run", text=True, short="run", breaks=True), *COLUMNS]
    return to_terminal(
        Grid("what ships", columns, lines),
        "what ships",
        f"vs ctrl: the uncompressed model of the same run, fine-tuned alike · {text.NOISE}: within noise",
    )


def sentence(content: Comparison) -> str:
    """Say which of the models that ship is the smallest, and which has the highest AUC."""
    if len(content["data"]) > 1:
        return (
            f"{len(content['runs'])} runs on {len(content['data'])} datasets, each compared with its control."
        )
    shipped = [row for row in content["rows"] if row["ships"]]
    if scored(shipped) != shipped:
        smallest = min(shipped, key=lambda row: row["bytes"])
        return f"Smallest: {smallest['run']}, {_short(smallest)}. {NO_AUC}"
    # As shown: what a reader sees as equal is called equal.
    size = {id(row): float(_megabytes(row).replace(",", "")) for row in shipped}
    auc = {id(row): float(text.measured(row["auc"])) for row in shipped}
    smallest = min(shipped, key=lambda row: (size[id(row)], -auc[id(row)]))
    best = max(shipped, key=lambda row: (auc[id(row)], -size[id(row)]))
    if len(shipped) > 1 and len({*size.values()}) == 1:
        if len({*auc.values()}) == 1:
            return f"The models that ship have one size and one AUC: {_size_and_auc(best)}."
        return f"The models that ship have one size. Highest AUC: {best['run']}, {_short(best)}."
    if smallest is best:
        small = "the smallest model" if _alone(best, size) else "one of the smallest models"
        good = "the one with the highest AUC" if _alone(best, auc) else "the highest AUC, as others do"
        return f"{best['run']} ships {small} and {good}: {_short(best)}."
    return f"Smallest: {smallest['run']}, {_short(smallest)}. Highest AUC: {best['run']}, {_short(best)}."


def _alone(row: ComparedRow, values: Mapping[int, float]) -> bool:
    return [*values.values()].count(values[id(row)]) == 1


def _short(row: ComparedRow) -> str:
    control = row.get("vs_control")
    against = "" if control is None else f", {_signed(control)} against its control"
    return f"{_size_and_auc(row)}{against}"


def _size_and_auc(row: ComparedRow) -> str:
    return f"{_megabytes(row)} MB, AUC {text.measured(row['auc'])}"


def notes(content: Comparison) -> list[str]:
    """Say what a reader must know to read the table."""
    found = [
        "“vs control” compares with the uncompressed model of the same run after as many rounds of the same "
        "fine-tuning; “Smaller” and “Faster” with the baseline of the same run.",
        "Rows/s of different runs were measured at different times; “Faster” was measured in turn with the "
        "run's own baseline, so it can be compared.",
    ]
    machines = {
        (each.get("processor"), each.get("cores"))
        for run in content["runs"]
        if (each := run.get("environment")) is not None
    }
    if len(machines) > 1:
        found.append(
            f"The runs are of {len(machines)} kinds of machines ({_machines(machines)}): how much faster a "
            "model is depends on the machine."
        )
    if any(len(run["seeds"]) > 1 for run in content["runs"]):
        found.append(
            f"Runs of several seeds show mean ± sample deviation; {text.NOISE} marks differences that chance "
            "explains (paired t-test, p ≥ 0.05). A run of one seed shows no deviation, but has one."
        )
    else:
        found.append(
            "Each run is of one seed: small differences between runs may be those of their seeds. Runs of "
            "several seeds say how large these are."
        )
    return found


def _machines(machines: set[tuple[Any, Any]]) -> str:
    return "; ".join(sorted(f"{processor}, {cores} cores" for processor, cores in machines))


def _megabytes(row: ComparedRow) -> str:
    return text.significant(row["bytes"] / 1e6)


def _signed(difference: ComparedDifference | None) -> str:
    if difference is None:
        return text.NONE
    mean = text.signed(difference["mean"])
    return text.deviating(mean, difference.get("deviation"), noise=difference.get("noise", False))


def _heading(run: ComparedRun) -> str:
    seeds = f", seeds {', '.join(map(str, run['seeds']))}" if len(run["seeds"]) > 1 else ""
    return f"{run['name']}: {run['title']}{seeds}"


def document(content: Comparison) -> Document:
    """Lay out a comparison."""
    several = len(content["data"]) > 1
    results = [
        Section(
            f"results-{index}" if several else "results",
            f"Results on {_data_name(data, index)}" if several else "Results",
            _results(content, index),
        )
        for index, data in enumerate(content["data"])
    ]
    data = [
        Part(f"Dataset {index + 1}", [Facts(facts_of_data(data)), *splits(data)])
        for index, data in enumerate(content["data"])
    ]
    return Document(
        title=f"Comparison of {content['title']}",
        origin=f"afm-dist comparison of {len(content['runs'])} runs",
        # Names of runs in large type are not broken at their hyphens.
        lead=sentence(content).replace("-", "\N{NON-BREAKING HYPHEN}"),
        sections=[
            *results,
            Section("notes", "How to read it", [Items(notes(content))]),
            Section("options", "What differs", _options(content)),
            Section("data", "Data", [Beside(data)]),
            Section("runs", "Runs", [_run(run) for run in content["runs"]]),
        ],
    )


def _data_name(data: Data, index: int) -> str:
    return f"dataset {index + 1} ({data.get('fingerprint', 'unknown')[:12]})"


def _results(content: Comparison, data: int) -> list[Block]:
    """Show the table of the runs on one dataset, and its plots."""
    from afm_dist.report.plots import comparison as plots

    runs = [run for run in content["runs"] if run["data"] == data]
    names = [run["name"] for run in runs]
    rows = [row for row in content["rows"] if row["run"] in names]
    finished = [row for row in rows if row["stage"] != "before-finetune"]
    earlier = [row for row in rows if row["stage"] == "before-finetune"]
    against = [row for row in finished if "vs_control" in row and not row["name"].endswith("-mlp")]
    bayes = content["data"][data].get("bayes_auc")
    plotted = scored(finished)
    drawn = bayes is not None and bool(plotted) and plots.reaches(plotted, bayes)
    dotted = " Dotted: the best possible (Bayes)." if drawn else ""
    shown: list[Block] = [Paragraph(NO_AUC)]
    if plotted:
        shown = [
            Plot(
                partial(plots.auc_against_bytes, plotted, names, bayes, f"auc-bytes-{data}"),
                "AUC against size",
                "A colour a run. Filled: ships; squares: baselines, diamonds: controls. Dashed: from a run's "
                f"baseline to what it ships.{dotted}",
            )
        ]
    if against:
        shown.append(
            Plot(
                partial(plots.to_control, against, names, f"to-control-{data}"),
                "What compression costs",
                "Each fine-tuned model against the control of its run, whose fine-tuning is the same. "
                "Filled: ships.",
            )
        )
    before = _grid(runs, earlier, "The same before fine-tuning")
    return [
        _grid(runs, finished, "Quality on the test split, size and speed of every model"),
        Beside(shown),
        *([Folded("Before fine-tuning", [before])] if earlier else []),
    ]


def _grid(runs: Sequence[ComparedRun], rows: Sequence[ComparedRow], caption: str) -> Grid:
    lines = [_line(row, _heading(run)) for run in runs for row in rows if row["run"] == run["name"]]
    return Grid(caption, COLUMNS, lines)


def _line(row: ComparedRow, group: str) -> Line:
    cells: list[Inline] = [
        marked(row["name"], badge="ships" if row["ships"] else ""),
        text.FINE_TUNING[row["stage"]],
        text.deviating(text.measured(row["auc"]), row.get("auc_deviation")),
        _signed(row.get("vs_baseline")),
        _signed(row.get("vs_control")),
        text.measured(row["log_loss"]),
        _megabytes(row),
        text.ratio(row["smaller"]),
        text.millions(round(row["parameters"])),
        text.count(row["rows_per_second"]),
        text.ratio(row["throughput_ratio"]),
    ]
    return Line(cells=cells, strong=row["ships"], group=group)


def _options(content: Comparison) -> list[Block]:
    if not content["options"]:
        return [Paragraph("All runs have the same options.")]
    cells: list[list[Inline]] = [
        [code(f"--{option.replace('_', '-')}"), *(text.NONE if one is None else str(one) for one in values)]
        for option, values in content["options"].items()
    ]
    caption = f"Options in which the runs differ; {text.NONE} was not given, or not known to that release"
    return [grid(caption, texts("Option", *(run["name"] for run in content["runs"])), cells)]


def _run(run: ComparedRun) -> Part:
    created = f", {text.moment(run['created'])}" if run.get("created") else ""
    return Part(
        run["name"],
        [
            Paragraph([code(run["location"]), created], small=True),
            *([Code(run["command"])] if run.get("command") else []),
            Folded("Environment", [Facts(facts_of(run.get("environment") or {}))]),
        ],
    )
