"""What ships, before anything is reported of it: what was trained is never lost to a report."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from afm_dist import storage
from afm_dist.checkpoint import preprocessing
from afm_dist.checkpoint.config import load_config
from afm_dist.checkpoint.files import size_on_disk
from afm_dist.dataset.manifest import FILE_NAME as MANIFEST
from afm_dist.errors import AfmError, OptionError, ReportError
from afm_dist.pipelines.context import Context
from afm_dist.pipelines.step import Step
from afm_dist.planning.capacity import Estimate
from afm_dist.planning.estimate import Costs
from afm_dist.report import read_report, table
from afm_dist.report.model_card import FILE_NAME as CARD
from afm_dist.report.model_card import model_card
from afm_dist.runs import stage_files
from afm_dist.runs.run import EVENTS, Run, Stage
from afm_dist.runtime import console
from afm_dist.stages.searching import SearchResult
from afm_dist.stages.training import Models

# The largest loss of validation AUC to the control that is taken for none, and the paper's aim.
NO_LOSS = 0.0002
BEST, SMALLEST = "best", "smallest"


@dataclass(frozen=True, kw_only=True)
class ShippedModel:
    """What ships.

    Attributes:
        stage: With its checkpoint.
        name: Its row name.
        reason: Why it is this one, with what the others have.
    """

    stage: Stage
    name: str
    reason: str


@dataclass(kw_only=True)
class Ship(Step[ShippedModel]):
    """Copies a fine-tuned checkpoint to ``checkpoint/``, with what makes raw rows its inputs.

    Attributes:
        models: Among them the one that ships; None of the others is the control.
        compressed: The same before fine-tuning.
        found: With the budget that what ships must fit, if there is one.
        control: Row name of the uncompressed model with the same rounds.
        rule: ``best``: that with the best validation AUC, of equal ones the smallest; ``smallest``: the
            smallest that is as good as the control on the validation split, where none is, the best; or the
            row name of one.
    """

    models: Step[Models]
    compressed: Step[Models]
    found: Step[SearchResult]
    control: str = "control"
    rule: str = BEST

    def work(self, context: Context) -> ShippedModel:
        """Choose and copy it."""
        models = self.models.result
        names, budget = [*self.compressed.result.checkpoints], self.found.result.budget
        candidates = [
            Contender(
                name=name,
                validation_auc=models.histories[name].best.validation_auc,
                bytes=size_on_disk(models.checkpoints[name]),
            )
            for name in names
        ]
        control = models.histories[self.control].best.validation_auc
        name, reason = choose(candidates, control, self.rule, budget)
        return ShippedModel(stage=ship(context, models, name), name=name, reason=reason)


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A model that may ship.

    Attributes:
        name: Its row name.
        validation_auc: On the validation split, of the state that is kept.
        bytes: Of its checkpoint.
    """

    name: str
    validation_auc: float
    bytes: int


def choose(
    candidates: Sequence[Contender], control: float, rule: str, budget: int | None = None
) -> tuple[str, str]:
    """Choose what ships.

    Args:
        candidates: What was compared.
        control: Validation AUC of the control.
        rule: As in ``Ship``.
        budget: Bytes that what ships may have; None: as many as it takes.

    Returns:
        The name, and why it is this one.

    Raises:
        OptionError: the rule names none of them.
    """
    fitting = [one for one in candidates if budget is None or one.bytes <= budget]
    among = "what was compared" if budget is None else f"what fits {budget:,} bytes"
    best = max(fitting, key=lambda one: (one.validation_auc, -one.bytes))
    if rule == BEST:
        chosen, why = best, f"the best validation AUC of {among}"
        if len(fitting) == 1:
            why = f"the only one of {among}"
    elif rule == SMALLEST:
        good = [one for one in fitting if one.validation_auc >= control - NO_LOSS]
        chosen = min(good, key=lambda one: (one.bytes, -one.validation_auc)) if good else best
        why = (
            "the smallest that was fine-tuned and is as good as the control on the validation split"
            if good
            else "of those that were fine-tuned the best on the validation split; none is as good as the "
            "control"
        )
    else:
        named = {one.name: one for one in fitting}
        if rule not in named:
            raise OptionError(f"--ship {rule!r}: choose from {', '.join((BEST, SMALLEST, *named))}")
        chosen, why = named[rule], f"chosen by --ship {rule}"
    others = ", ".join(
        f"{one.name} has {one.validation_auc:.5f} in {one.bytes:,} bytes"
        + ("" if one in fitting else ", too many")
        for one in candidates
        if one is not chosen
    )
    compared = f"; {others}" if others else ""
    difference = chosen.validation_auc - control
    return chosen.name, (
        f"{why} (AUC {chosen.validation_auc:.5f}, {difference:+.4f} to the control{compared})"
    )


def ship(context: Context, models: Models, name: str) -> Stage:
    """Copy a checkpoint to ``checkpoint/``, with what makes raw rows its inputs.

    Args:
        context: Of the job.
        models: Among them the one that ships.
        name: Its name.
    """

    def work(folder: str) -> None:
        storage.copy(models.checkpoints[name], folder)
        preprocessing.attach(context.manifest, folder)

    return context.run.stage(
        "checkpoint",
        work,
        config={"name": name, "preprocessing": preprocessing.FOLDER},
        inputs=[context.data, models.stage],
    )


@dataclass(kw_only=True)
class Reporting(Step[Stage]):
    """Does everything that only a report needs, once the model has shipped: measuring, writing, printing.

    Attributes:
        steps: What is measured.
        report: Writes it.
        shipped: What ships.

    Raises:
        ReportError: in place of whatever went wrong inside.
    """

    steps: Sequence[Step[Any]]
    report: Step[Stage]
    shipped: Step[ShippedModel]

    def estimates(self, costs: Costs) -> Sequence[Estimate]:
        """Give what the steps take."""
        return [estimate for step in (*self.steps, self.report) for estimate in step.estimates(costs)]

    def work(self, context: Context) -> Stage:
        """Write the report, and print the result."""
        shipped = self.shipped.result.stage
        with reporting(context.run, shipped.path):
            for step in (*self.steps, self.report):
                step.run(context)
            attach_card(context.run, shipped, self.report.result)
            print_result(context.run, self.report.result, shipped)
        return self.report.result


@contextmanager
def reporting(run: Run, *shipped: str) -> Iterator[None]:
    """List the steps that only a report needs once the models have shipped: measure, write, print.

    Args:
        run: The run directory.
        shipped: The folders of their checkpoints.

    Raises:
        ReportError: in place of whatever went wrong inside; what has no words for its reader leaves its
            traceback in ``events.jsonl``.
    """
    try:
        yield
    except Exception as error:
        reason = str(error)
        if not isinstance(error, AfmError | OSError):
            where = storage.join(run.path, EVENTS)
            reason = f"{type(error).__name__}: {error} (the traceback is in {where}; please report this)"
            run.event("report failed", traceback=traceback.format_exc())
        what = "model is" if len(shipped) == 1 else "models are"
        raise ReportError(
            f"no report: {reason.rstrip('.')}. The {what} complete in {', '.join(shipped)}; the same command "
            "goes on with the report alone"
        ) from error


def print_result(run: Run, written: Stage, shipped: Stage) -> None:
    """Print the table and where everything is."""
    console.out.print(table(read_report(written.file("report.json"))))
    if not run.redone:
        console.info("every stage is up to date: nothing was done")
    console.info(f"checkpoint: {shipped.path}")
    console.info(f"report:     {written.file('report.html')}")


def attach_card(run: Run, shipped: Stage, written: Stage) -> None:
    """Write the model card beside what shipped, unless it is there: it follows from the report.

    Args:
        run: The run directory.
        shipped: The ``checkpoint`` stage.
        written: The ``report`` stage.
    """
    content = read_report(written.file("report.json"))
    attached = storage.exists(shipped.file(preprocessing.FOLDER, MANIFEST))
    card = model_card(content, load_config(shipped.path).to_json(), vocabularies=attached).encode()
    location = shipped.file(CARD)
    if not storage.exists(location) or storage.read_bytes(location) != card:
        stage_files.record_added(run.path, shipped.name, CARD)
        storage.write_bytes(location, card)
