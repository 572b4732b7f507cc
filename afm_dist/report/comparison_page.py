"""``report.html`` and ``report.md`` of a comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from afm_dist import storage
from afm_dist.report import text
from afm_dist.report.comparison import ComparedRow, ComparedRun, Comparison, Difference
from afm_dist.report.document import document
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
    paragraph,
    plain,
)
from afm_dist.report.markdown import fenced, markdown_table
from afm_dist.report.markdown import plain as escaped
from afm_dist.report.model_sections import name_cell
from afm_dist.report.run_sections import facts_of
from afm_dist.report.schema import Data
from afm_dist.report.summary import NO_AUC, scored

HEADINGS = (
    *("Model", "Fine-tuning", "AUC", "vs baseline", "vs control", "Log loss"),
    *("MB", "Smaller", "Parameters", "Rows/s", "Faster"),
)
NOISE = "≈"


def write_comparison(content: Comparison, output: str) -> str:
    """Write ``report.json``, ``report.md`` and ``report.html``.

    Args:
        content: Of the comparison.
        output: Folder to write to, a local path or a URI.

    Returns:
        The location of ``report.html``.
    """
    rendered = {"report.md": markdown(content), "report.html": page(content)}
    storage.write_json(storage.join(output, "report.json"), dict(content))
    for name, words in rendered.items():
        storage.write_bytes(storage.join(output, name), words.encode())
    return storage.join(output, "report.html")


def sentence(content: Comparison) -> str:
    """Which of the models that ship is the smallest, and which has the highest AUC."""
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
    """What a reader must know to read the table."""
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
            f"Runs of several seeds show mean ± sample deviation; {NOISE} marks differences that chance "
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


def _figures(row: ComparedRow) -> list[str]:
    """A row's cells after its name and stage."""
    deviation = row.get("auc_deviation")
    return [
        text.measured(row["auc"]) + ("" if deviation is None else f" ± {deviation:.4f}"),
        _signed(row.get("vs_baseline")),
        _signed(row.get("vs_control")),
        text.measured(row["log_loss"]),
        _megabytes(row),
        text.ratio(row["smaller"]),
        text.millions(round(row["parameters"])),
        text.count(row["rows_per_second"]),
        text.ratio(row["throughput_ratio"]),
    ]


def _megabytes(row: ComparedRow) -> str:
    return text.significant(row["bytes"] / 1e6)


def _signed(difference: Difference | None) -> str:
    if difference is None:
        return text.NONE
    mean = text.signed(difference["mean"])
    if "deviation" not in difference:
        return mean
    mark = f"{NOISE} " if difference.get("noise") else ""
    return f"{mark}{mean} ± {difference['deviation']:.4f}"


def _heading(run: ComparedRun) -> str:
    seeds = f", seeds {', '.join(map(str, run['seeds']))}" if len(run["seeds"]) > 1 else ""
    return f"{run['name']}: {run['title']}{seeds}"


def page(content: Comparison) -> str:
    """The whole of ``report.html``."""
    # Names of runs in large type are not broken at their hyphens.
    lead = sentence(content).replace("-", "\N{NON-BREAKING HYPHEN}")
    header = Html(
        f"<h1>{plain(content['title'])}</h1>\n"
        f'<p class="origin">afm-dist comparison of {len(content["runs"])} runs</p>\n'
        f'<p class="lead">{plain(lead)}</p>'
    )
    several = len(content["data"]) > 1
    parts = [
        (
            f"results-{index}" if several else "results",
            f"Results on {_data_name(data, index)}" if several else "Results",
            _results(content, index),
        )
        for index, data in enumerate(content["data"])
    ]
    words = Html("<ul>\n" + "\n".join(f"<li>{plain(note)}</li>" for note in notes(content)) + "\n</ul>")
    parts += [
        ("notes", "How to read it", words),
        ("options", "What differs", _options(content)),
        ("data", "Data", columns(*(_data(data, index) for index, data in enumerate(content["data"])))),
        ("runs", "Runs", join(_run(run) for run in content["runs"])),
    ]
    return document(f"Comparison of {content['title']}", header, parts)


def _data_name(data: Data, index: int) -> str:
    return f"dataset {index + 1} ({data.get('fingerprint', 'unknown')[:12]})"


def _results(content: Comparison, data: int) -> Html:
    """The table of the runs on one dataset, and its figures."""
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
    shown = [
        figure(
            plots.auc_against_bytes(plotted, names, bayes, f"auc-bytes-{data}"),
            "AUC against size",
            plain(
                "A colour a run. Filled: ships; squares: baselines, diamonds: controls. Dashed: from a run's "
                f"baseline to what it ships.{dotted}"
            ),
        )
        if plotted
        else paragraph(plain(NO_AUC))
    ]
    if against:
        shown.append(
            figure(
                plots.to_control(against, names, f"to-control-{data}"),
                "What compression costs",
                plain(
                    "Each fine-tuned model against the control of its run, whose fine-tuning is the same. "
                    "Filled: ships."
                ),
            )
        )
    return join(
        [
            grid(_grid(runs, finished, "Quality on the test split, size and speed of every model")),
            columns(*shown),
            disclosure("Before fine-tuning", grid(_grid(runs, earlier, "The same before fine-tuning")))
            if earlier
            else EMPTY,
        ]
    )


def _grid(runs: Sequence[ComparedRun], rows: Sequence[ComparedRow], caption: str) -> Grid:
    return Grid(
        caption=caption,
        columns=HEADINGS,
        words=(0, 1),
        groups=[(_heading(run), [_line(row) for row in rows if row["run"] == run["name"]]) for run in runs],
    )


def _line(row: ComparedRow) -> Line:
    badge = Html('<span class="badge">ships</span>') if row["ships"] else EMPTY
    return Line(
        cells=[
            Html(name_cell(row["name"]) + badge),
            plain(text.FINE_TUNING[row["stage"]]),
            *(plain(figure) for figure in _figures(row)),
        ],
        style="ships-row" if row["ships"] else "",
    )


def _options(content: Comparison) -> Html:
    if not content["options"]:
        return paragraph(plain("All runs have the same options."))
    lines = [
        Line(cells=[code(f"--{option.replace('_', '-')}"), *(plain(_value(value)) for value in values)])
        for option, values in content["options"].items()
    ]
    table = Grid(
        caption=f"Options in which the runs differ; {text.NONE} was not given, or not known to that release",
        columns=["Option", *(run["name"] for run in content["runs"])],
        words=tuple(range(len(content["runs"]) + 1)),
        groups=[("", lines)],
    )
    return grid(table)


def _value(value: Any) -> str:
    return text.NONE if value is None else str(value)


def _data(data: Data, index: int) -> Html:
    return Html(f"<div><h3>Dataset {index + 1}</h3>\n{definitions(facts_of_data(data))}</div>")


def facts_of_data(data: Data) -> list[tuple[str, Html]]:
    """Name, rows of each split, digest."""
    facts = [("Name", plain(data["name"]))]
    for name, split in (data.get("splits") or {}).items():
        facts.append((f"Rows in {name}", plain(text.count(split["rows"]))))
    if "ids" in data:
        facts.append(("Ids in the vocabularies", plain(text.count(data["ids"]))))
    if "bayes_auc" in data:
        facts.append(("Best possible AUC (Bayes)", plain(text.score(data["bayes_auc"]))))
    if data.get("fingerprint"):
        facts.append(("Fingerprint", code(data["fingerprint"])))
    return facts


def _run(run: ComparedRun) -> Html:
    command = Html(f"<pre>{plain(run['command'])}</pre>") if run.get("command") else EMPTY
    created = f", {text.moment(run['created'])}" if run.get("created") else ""
    folder = paragraph(Html(f"{code(run['location'])}{plain(created)}"), "small muted")
    environment = definitions(facts_of(run.get("environment") or {}))
    return join(
        [
            Html(f"<h3>{plain(run['name'])}</h3>"),
            folder,
            command,
            disclosure("Environment", environment) if environment else EMPTY,
        ]
    )


def markdown(content: Comparison) -> str:
    """The whole of ``report.md``."""
    parts = [f"# Comparison of {escaped(content['title'])}", f"**{escaped(sentence(content))}**"]
    for index, data in enumerate(content["data"]):
        if len(content["data"]) > 1:
            parts.append(f"## On {escaped(_data_name(data, index))}")
        names = [run["name"] for run in content["runs"] if run["data"] == index]
        body = [
            [
                escaped(row["run"]),
                f"**{escaped(row['name'])}**" if row["ships"] else escaped(row["name"]),
                text.FINE_TUNING[row["stage"]],
                *_figures(row),
            ]
            for row in content["rows"]
            if row["run"] in names and row["stage"] != "before-finetune"
        ]
        parts.append(markdown_table(("Run", *HEADINGS), body, 3))
    parts.append("\n".join(f"- {escaped(note)}" for note in ["Bold ships.", *notes(content)]))
    if content["options"]:
        body = [
            [escaped(f"--{option.replace('_', '-')}"), *(escaped(_value(value)) for value in values)]
            for option, values in content["options"].items()
        ]
        heads = ["Option", *(escaped(run["name"]) for run in content["runs"])]
        parts.append(f"## What differs\n\n{markdown_table(heads, body, len(heads))}")
    parts.append("## Runs")
    for run in content["runs"]:
        parts.append(f"{escaped(_heading(run))}")
        if run.get("command"):
            parts.append(fenced(run["command"]))
    return "\n\n".join(parts) + "\n"
