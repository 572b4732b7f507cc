"""Models that are scored as they are rewritten, without being written, in a stage that may be interrupted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NotRequired, TypedDict

from afm_dist import storage
from afm_dist.checkpoint.config import load_config
from afm_dist.checkpoint.files import size_on_disk
from afm_dist.checkpoint.pretrained import count_parameters, from_pretrained
from afm_dist.compression.budget import description_bytes, structure_bytes
from afm_dist.compression.config import MethodConfig, describe_size
from afm_dist.compression.plan import Plan
from afm_dist.compression.rewrite import compress_
from afm_dist.dataset.manifest import Manifest
from afm_dist.errors import DataError
from afm_dist.evaluation.score import score_split
from afm_dist.runs.run import Run
from afm_dist.runtime import console
from afm_dist.runtime.resources import ResourceOptions
from afm_dist.statistics.statistics import Statistics

SCORED = "scored"


class Scored(TypedDict):
    """What is found of a model."""

    name: str
    method: str
    plan: dict[str, Any]
    ranks: dict[str, int | dict[str, int] | str]
    bytes: int
    parameters: int
    auc: NotRequired[float | None]
    log_loss: NotRequired[float | None]
    validation_auc: NotRequired[float]
    validation_log_loss: NotRequired[float]


class PlanScorer:
    """Scores what plans make of a model, and remembers what it found, also beyond an interruption.

    Args:
        run: The run directory.
        manifest: The dataset.
        source: Checkpoint of the uncompressed model.
        folder: Of the stage.
        known: Of the outputs that are compressed.
        splits: On whose rows; results of the test split have no prefix, and are null where undefined.
        options: What tasks are given.
    """

    def __init__(
        self,
        run: Run,
        manifest: Manifest,
        source: str,
        folder: str,
        known: Statistics,
        *,
        splits: Sequence[str],
        options: ResourceOptions,
    ) -> None:
        self._run, self._manifest, self._source, self._folder = run, manifest, source, folder
        self._known = known
        self._splits, self._options = splits, options
        self._advance: Callable[[int], None] = lambda _: None
        self._config = load_config(source)
        # What a checkpoint has besides tensors and their description.
        self._besides = size_on_disk(source) - structure_bytes(self._config, Plan())
        self._besides -= description_bytes(self._config, Plan())
        self.found: list[dict[str, Any]] = []

    def __call__(self, name: str, method: str, plan: Plan) -> dict[str, Any]:
        """Score the model that a plan leads to.

        Args:
            name: Of the model.
            method: As the result says it.
            plan: What becomes of the uncompressed model.
        """
        location = storage.join(self._folder, SCORED, f"{name}.json")
        stored = self._stored(location)
        # Another processor may choose other ranks from the same statistics.
        if stored is not None and stored["plan"] == plan.to_json():
            self.found.append(stored)
            return self.found[-1]
        model = compress_(from_pretrained(self._source), plan, self._known)
        measured = {
            split: score_split(
                model,
                self._manifest,
                split,
                name=name,
                options=self._options,
                emit=self._run.event,
                advance=self._advance,
            )
            for split in self._splits
        }
        structure = structure_bytes(self._config, plan) + self._besides
        result: dict[str, Any] = {
            "name": name,
            "method": method,
            "plan": plan.to_json(),
            "ranks": sizes(plan),
            "bytes": structure + description_bytes(self._config, plan),
            "parameters": count_parameters(model),
        }
        for split, quality in measured.items():
            prefix = "" if split == "test" else f"{split}_"
            result |= {f"{prefix}auc": quality.auc, f"{prefix}log_loss": quality.log_loss}
        storage.write_sealed_json(location, result)
        self.found.append(result)
        return result

    def _stored(self, location: str) -> dict[str, Any] | None:
        """Read what was found before; None where nothing was, or where it was altered since."""
        if not storage.exists(location):
            return None
        try:
            return dict(storage.read_sealed_json(location, Scored, fix="it is scored again"))
        except DataError as error:
            console.warn(str(error))
            return None

    @contextmanager
    def remembering(self, what: str, models: int) -> Iterator[PlanScorer]:
        """Show a progress bar; what was scored is forgotten once all went well.

        So what is made of the scores is written inside: until then they can be made use of again.

        Args:
            what: Name of the stage.
            models: How many are scored, at most.
        """
        remembered = storage.join(self._folder, SCORED)
        rows = sum(self._manifest.rows(split) for split in self._splits)
        before = len(storage.list_names(remembered)) * rows
        with console.progress(what, models * rows, before=before) as self._advance:
            yield self
        storage.remove(remembered)


def sizes(plan: Plan) -> dict[str, Any]:
    """Give how much a plan keeps of each module; of what only changes its numbers nothing."""
    found: dict[str, list[MethodConfig]] = {}
    for entry in plan.entries:
        if entry.config.structure() is not None:
            found.setdefault(entry.name, []).append(entry.config)
    return {
        name: configs[0].size if len(configs) == 1 else ", ".join(config.in_words for config in configs)
        for name, configs in found.items()
    }


def describe_sizes(found: Mapping[str, Any]) -> str:
    """Write ``mlp.3 to 64, embedding by field (0 for depth; 2 for 11 fields)``."""
    return ", ".join(f"{name} {describe_size(own)}" for name, own in found.items())
