"""The comparison for the terminal: what each run ships, beside its control."""

from __future__ import annotations

from rich import box
from rich.table import Table
from rich.text import Text

from afm_dist.report import text
from afm_dist.report.comparison import Comparison


def table(content: Comparison) -> Table:
    """One row a run: what it ships."""
    result = Table(
        title=Text("what ships"),
        title_justify="left",
        caption=Text("vs ctrl: the uncompressed model of the same run, fine-tuned alike · ~: within noise"),
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    result.add_column("run", overflow="fold", min_width=8)
    result.add_column("model", overflow="fold", min_width=7)
    for name in ("AUC", "vs ctrl", "logloss", "MB", "smaller", "faster"):
        result.add_column(name, justify="right", no_wrap=True)
    for row in content["rows"]:
        if not row["ships"]:
            continue
        control = row.get("vs_control")
        noise = "~ " if control is not None and control.get("noise") else ""
        cells = (
            row["run"],
            row["name"],
            text.score(row["auc"]),
            text.NONE if control is None else noise + text.signed(control["mean"]),
            text.score(row["log_loss"]),
            text.significant(row["bytes"] / 1e6),
            text.ratio(row["smaller"]),
            text.ratio(row["throughput_ratio"]),
        )
        result.add_row(*(Text(cell) for cell in cells))
    return result
