"""What ships, before anything is reported of it: what was trained is never lost to a report."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from afm_dist import storage
from afm_dist.checkpoint import preprocessing
from afm_dist.checkpoint.config import load_config
from afm_dist.dataset.manifest import FILE_NAME as MANIFEST
from afm_dist.dataset.manifest import Manifest
from afm_dist.errors import AfmError, ReportError
from afm_dist.report import read_report
from afm_dist.report.model_card import FILE_NAME as CARD
from afm_dist.report.model_card import model_card
from afm_dist.runs import stage_files
from afm_dist.runs.run import EVENTS, Run, Stage
from afm_dist.stages.training import Models


def ship(run: Run, data: Stage, manifest: Manifest, models: Models, name: str) -> Stage:
    """Copy the chosen checkpoint to ``checkpoint/``, with what makes raw rows its inputs.

    Args:
        run: The run directory.
        data: The dataset, as a stage.
        manifest: The same.
        models: Among them the one that ships.
        name: Its name.
    """

    def work(folder: str) -> None:
        storage.copy(models.checkpoints[name], folder)
        preprocessing.attach(manifest, folder)

    return run.stage(
        "checkpoint",
        work,
        config={"name": name, "preprocessing": preprocessing.FOLDER},
        inputs=[data, models.stage],
    )


@contextmanager
def reporting(run: Run, *shipped: str) -> Iterator[None]:
    """Everything that only a report needs, once the models have shipped: measuring, writing, printing.

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
