"""A table over several compressions: mean and deviation over seeds, a row per model and dataset.

python -m jobs.benchmarks.summary RUN [RUN ...]

RUN is the run directory of a jobs/compress.py that trained its baseline itself. Prints Markdown.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import tyro

from afm_dist import console, storage
from afm_dist.errors import DataError
from jobs.compress_options import Compress

REPORT = "report/report.json"
# The report's rows: the uncompressed model, the same with the fine-tuning of the compressed one, that one.
ROWS = {
    "baseline": ("baseline", "trained"),
    "control": ("control", "after-finetune"),
    "AFM, before": ("afm-emb", "before-finetune"),
    "AFM": ("afm-emb", "after-finetune"),
    "SVD": ("svd-emb", "after-finetune"),
}
# Runs that differ in one of these options are not averaged.
NOT_MIXED = (
    *("preset", "mlp_rank", "mlp_energy", "embedding_dim", "activation", "kappa"),
    *("finetune_epochs", "finetune_learning_rate", "finetune_batch_size", "finetune_weights"),
    *("finetune_average", "finetune_patience", "distill", "distill_temperature", "precision", "workers"),
)


@dataclass(frozen=True)
class Compression:
    """What one run measured.

    Attributes:
        model: Architecture.
        data: Name of its folder.
        seed: Of the run.
        options: Tells runs of other presets, ranks and recipes apart.
        auc: Of the test split, by the names of ``ROWS``.
        smaller: Bytes of the baseline over those of the compressed model.
        bayes_auc: The best possible; None where it is not known.
    """

    model: str
    data: str
    seed: int
    options: str
    auc: Mapping[str, float]
    smaller: float
    bayes_auc: float | None

    @classmethod
    def read(cls, run: str) -> Compression:
        """From the report of a run.

        Raises:
            DataError: there is none, or a row is missing.
        """
        report: dict[str, Any] = storage.read_json(storage.join(run, REPORT))
        rows = {(row["name"], row["stage"]): row for row in report["rows"]}
        missing = [name for name, row in ROWS.items() if row not in rows]
        if missing:
            raise DataError(f"{run}: its report has no row for {missing[0]!r}")
        config, data = report["config"], report["data"]
        if config.get("checkpoint"):
            raise DataError(f"{run}: its baseline was trained elsewhere; nothing here says which model it is")
        # Reports from before an option was there mean its default.
        options = {name: config.get(name, getattr(Compress, name)) for name in NOT_MIXED}
        return cls(
            model=config["model"],
            options=storage.fingerprint(options),
            data=data_name(config),
            seed=config["seed"],
            auc={name: rows[row]["auc"] for name, row in ROWS.items()},
            smaller=rows[ROWS["baseline"]]["bytes"] / rows[ROWS["AFM"]]["bytes"],
            bayes_auc=data.get("bayes_auc"),
        )


def table(runs: Iterable[Compression]) -> str:
    """A row per dataset and model, in order.

    Raises:
        DataError: a seed occurs twice in a row.
    """
    groups: dict[tuple[str, str], list[Compression]] = {}
    for run in runs:
        groups.setdefault((run.data, run.model), []).append(run)
    differences = ("AFM", "control"), ("AFM", "baseline")
    head = ["data", "model", "seeds", *ROWS, *(f"{a} − {b}" for a, b in differences), "to Bayes", "smaller"]
    lines = [head, ["---", "---", *["--:"] * (len(head) - 2)]]
    for (data, model), group in sorted(groups.items()):
        if len({run.seed for run in group}) < len(group):
            raise DataError(f"{data}, {model}: two runs of one seed")
        if len({run.options for run in group}) > 1:
            raise DataError(
                f"{data}, {model}: runs with other options; one of {', '.join(NOT_MIXED)} differs"
            )
        cells = [spread([run.auc[name] for run in group]) for name in ROWS]
        # Of the same seed: the models share their rows, their order and their baseline.
        cells += [spread([run.auc[a] - run.auc[b] for run in group], sign=True) for a, b in differences]
        known = [run.bayes_auc - run.auc["AFM"] for run in group if run.bayes_auc is not None]
        cells.append(spread(known) if len(known) == len(group) else "")
        cells.append(f"{statistics.mean(run.smaller for run in group):.1f}×")
        lines.append([data, model, str(len(group)), *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def data_name(config: Mapping[str, Any]) -> str:
    """What a dataset is called: its folder, of the demo ``demo``.

    Args:
        config: Of a run of jobs/compress.py.
    """
    return str(config["data"]).rstrip("/").rpartition("/")[2] if config.get("data") else "demo"


def spread(values: Sequence[float], *, sign: bool = False) -> str:
    """Mean ± sample deviation, to four digits; the value alone, if there is one."""
    mean = f"{statistics.mean(values):{'+' if sign else ''}.4f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.4f}"


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Summarise several compressions."""

    runs: tyro.conf.Positional[tuple[str, ...]]
    """Run directories of jobs/compress.py."""


def main(config: Summary) -> None:
    """Run the job."""
    console.say(table(Compression.read(run) for run in config.runs))


if __name__ == "__main__":
    console.run_job(Summary, main)
