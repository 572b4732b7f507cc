"""Sections about the models: results, fine-tuning, activation between the factors, training."""

from __future__ import annotations

from afm_dist.report import text
from afm_dist.report.elements import (
    EMPTY,
    Grid,
    Html,
    Line,
    code,
    columns,
    disclosure,
    figure,
    grid,
    join,
    paragraph,
    plain,
)
from afm_dist.report.plots import curves, models
from afm_dist.report.plots.canvas import role_of
from afm_dist.report.schema import CurvePoint, FineTuning, Report, Row, TrainingPoint
from afm_dist.report.summary import (
    NO_AUC,
    auc_difference,
    auc_error,
    baseline_of,
    control_of,
    grouped,
    scored,
)

FOLDED_FROM = 12
LONG_NAME = 20
PLOTTED_FROM = 3
ROUNDS = {
    "mlp": "after compressing the linear layers",
    "embedding": "after compressing the embeddings",
    "both": "after compressing linear layers and embeddings",
}


def results(report: Report) -> Html:
    """The table of all rows, and what it looks like."""
    rows = report["rows"]
    bayes = report.get("data", {}).get("bayes_auc")
    quality = paragraph(plain(NO_AUC))
    if scored(rows) == rows:
        quality = figure(
            models.auc_against_bytes(rows, bayes),
            "AUC against size",
            plain("Hollow: before fine-tuning. Filled: after it, or as trained. The AUC axis is cut."),
        )
    return join(
        [
            grid(_results_grid(report)),
            paragraph(plain(_how_to_read(report)), "small muted"),
            columns(
                quality,
                figure(
                    models.throughput(rows),
                    "Throughput",
                    plain(
                        "Whiskers: smallest and largest of the repeated measurements. Dashed: the baseline."
                    ),
                ),
            ),
        ]
    )


def name_cell(name: str) -> Html:
    """A row's name with the colour that stands for its method in every figure."""
    long = " long" if len(name) > LONG_NAME else ""
    return Html(f'<span class="method method-{role_of(name)}{long}">{plain(name)}</span>')


def _results_grid(report: Report) -> Grid:
    rows = report["rows"]
    validated = any("validation_auc" in row for row in rows)
    headings = ["Model", "Fine-tuning", "AUC", "vs baseline", "vs control", "Log loss"]
    headings += ["Validation AUC"] if validated else []
    headings += ["MB", "Smaller", "Parameters", "Rows/s", "Faster", "Range"]
    groups = [
        (heading, [_result_line(report, row, validated=validated) for row in members])
        for heading, members in grouped(rows)
    ]
    return Grid(
        caption="Quality on the test split, size and speed of every model of this run",
        columns=headings,
        words=(0, 1),
        groups=groups,
    )


def _result_line(report: Report, row: Row, *, validated: bool) -> Line:
    rows = report["rows"]
    baseline, control = baseline_of(rows), control_of(rows, row)
    ships = (row["name"], row["stage"]) == (report["shipped"]["name"], report["shipped"]["stage"])
    badge = Html('<span class="badge">ships</span>') if ships else EMPTY
    measured = text.spread(row.get("throughput_ratio_min"), row.get("throughput_ratio_max"))
    cells = [
        Html(name_cell(row["name"]) + badge),
        plain(text.FINE_TUNING[row["stage"]]),
        plain(text.measured(row["auc"])),
        plain(text.NONE if row is baseline else text.signed(auc_difference(row, baseline))),
        plain(text.signed(auc_difference(row, control))),
        plain(text.measured(row["log_loss"])),
        *([plain(text.score(row.get("validation_auc")))] if validated else []),
        plain(text.megabytes(row["bytes"])),
        plain(text.ratio(baseline["bytes"] / row["bytes"])),
        plain(text.millions(row["parameters"])),
        plain(text.count(row["rows_per_second"])),
        plain(text.ratio(row["throughput_ratio"])),
        plain(measured or text.NONE),
    ]
    note = plain(row.get("note", ""))
    return Line(cells=cells, style="ships-row" if ships else "", note=note)


def _how_to_read(report: Report) -> str:
    words = (
        "“vs control” compares with the uncompressed model after as many rounds of the same fine-tuning, "
        "and with the baseline where there was none. MB are 10⁶ bytes of the checkpoint. “Faster” is "
        "throughput over the baseline's, “Range” its smallest and largest measurement."
    )
    test = report.get("data", {}).get("splits", {}).get("test")
    if test and "positive_share" in test:
        error = auc_error(baseline_of(report["rows"])["auc"], test["rows"], test["positive_share"])
        if error is not None:
            words += (
                f" Another test split of {text.count(test['rows'])} rows would move a single AUC by about "
                f"±{error:.4f} (one standard error, Hanley and McNeil); differences between models scored on "
                "the same rows vary less."
            )
    return words


def finetuning(report: Report) -> Html:
    """Curves of each round, and what was kept of each candidate."""
    candidates = report.get("finetuning")
    if not candidates:
        return EMPTY
    baseline = baseline_of(report["rows"]).get("validation_auc")
    level = "" if baseline is None else " Dashed: the baseline as trained."
    rounds = {candidate["round"]: None for candidate in candidates}
    plots = [
        figure(
            curves.validation_auc(
                [one for one in candidates if one["round"] == part], baseline, f"curve-{index}"
            ),
            f"Validation AUC {ROUNDS.get(part, part)}",
            plain(f"Step 0 is before fine-tuning. The ring marks what was kept.{level}"),
        )
        for index, part in enumerate(rounds)
    ]
    return join([columns(*plots), grid(_kept_grid(candidates))])


def _kept_grid(candidates: list[FineTuning]) -> Grid:
    keys = list(dict.fromkeys(key for one in candidates for key in one.get("recipe", {})))
    lines = []
    for one in candidates:
        kept = next(point for point in one["curve"] if point["step"] == one["kept_step"])
        recipe = one.get("recipe", {})
        lines.append(
            Line(
                cells=[
                    name_cell(one["name"]),
                    plain(one.get("kept", "").replace("-", "\N{NON-BREAKING HYPHEN}")),
                    plain(one.get("reason", "")),
                    plain(text.count(one["kept_step"])),
                    plain(text.score(kept["validation_auc"])),
                    *(_setting(recipe.get(key, text.NONE)) for key in keys),
                ]
            )
        )
    headings = ["Model", "Kept", "Why", "Step", "Validation AUC", *(key.replace("_", " ") for key in keys)]
    return Grid(
        caption="What was kept of each candidate, chosen on the validation split, and its recipe",
        columns=headings,
        words=(0, 1, 2),
        groups=[("", lines)],
    )


def _setting(value: object) -> Html:
    """None: as the model was built, so nothing was set."""
    if value is None:
        return plain(text.NONE)
    return plain(("no", "yes")[value] if isinstance(value, bool) else value)


def relu_modes(report: Report) -> Html:
    """The ablation of what stands between the two factors of a linear layer."""
    modes = report.get("relu_modes")
    if not modes:
        return EMPTY
    lines = [
        Line(
            cells=[
                Html(
                    code(mode["activation"])
                    + ('<span class="badge">chosen</span>' if mode.get("chosen") else "")
                ),
                plain(text.FINE_TUNING[mode["stage"]]),
                plain(text.score(mode.get("validation_auc"))),
                plain(text.measured(mode["auc"])),
                plain(text.measured(mode["log_loss"])),
            ],
            style="ships-row" if mode.get("chosen") else "",
        )
        for mode in modes
    ]
    words = (
        "A linear layer becomes two. “none” puts nothing between them; “plain” a ReLU, as published; "
        "“shifted” a ReLU moved below the bulk of the data, so that it changes little before fine-tuning. "
        "The chosen mode is the option --activation of the run; the others are here to compare."
    )
    table = Grid(
        caption="Quality by activation",
        columns=["Activation", "Fine-tuning", "Validation AUC", "AUC", "Log loss"],
        words=(0, 1),
        groups=[("", lines)],
    )
    return columns(grid(table), paragraph(plain(words)))


def training(report: Report) -> Html:
    """How the baseline was trained."""
    points = report.get("training")
    if not points:
        return EMPTY
    lines = [
        Line(
            cells=[
                plain(point["epoch"]),
                plain(text.count(point["step"]) if "step" in point else text.NONE),
                plain(text.score(point.get("train_loss"))),
                plain(text.score(point.get("validation_auc"))),
                plain(text.score(point.get("validation_log_loss"))),
            ]
        )
        for point in points
    ]
    table = Grid(
        caption="The uncompressed model by epoch",
        columns=["Epoch", "Step", "Training loss", "Validation AUC", "Validation log loss"],
        words=(),
        groups=[("", lines)],
    )
    numbers = grid(table)
    if len(points) > FOLDED_FROM:
        numbers = disclosure(f"All {len(points)} validations in numbers", numbers)
    return columns(_training_curve(points), numbers)


def _training_curve(points: list[TrainingPoint]) -> Html:
    curve: list[CurvePoint] = [
        {"step": point["step"], "validation_auc": point["validation_auc"]}
        for point in points
        if "step" in point and "validation_auc" in point
    ]
    if len(curve) < PLOTTED_FROM:
        return EMPTY
    best = max(curve, key=lambda point: point["validation_auc"])
    baseline: FineTuning = {"name": "baseline", "round": "mlp", "kept_step": best["step"], "curve": curve}
    plot = curves.validation_auc([baseline], None, "curve-training", whole=True)
    return figure(plot, "Validation AUC of the uncompressed model", plain("The ring marks the highest."))
