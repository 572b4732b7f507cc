"""Score raw rows: out of core, in order, restartable.

1. *scan*: lines per block, since a malformed row is named by its line;
2. *vocabulary*: one task per categorical field makes a lookup of its vocabulary;
3. *score*: one task per block reads, encodes and scores its rows, and leaves a part;
4. the driver puts the parts together, in order, to one file.

What a part holds is a function of the input, the model and the options: the same bits for any number of
workers, and after any interruption.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import ray
from torch import nn

from afm_dist import __version__, storage
from afm_dist.dataset.manifest import Count, Manifest
from afm_dist.errors import DataError, OptionError
from afm_dist.runs.events import Emit, no_events
from afm_dist.runtime import console
from afm_dist.runtime.cluster import ensure_ray, task_resources
from afm_dist.runtime.resources import AUTOMATIC, ResourceOptions, TaskResources
from afm_dist.runtime.sharing import model_bytes, model_digest, share
from data_prep.parse import most_rejected
from data_prep.plan import check_unchanged
from data_prep.rejected import REJECTED_SHOWN
from data_prep.scan import scan
from data_prep.scoring import BATCH_SIZE, MAX_BAD_ROWS
from data_prep.scoring.block import LOGIT, ROW, SCORE, BlockScorer, ScoredBlock, part_schema, score_block
from data_prep.scoring.inputs import InputMaker
from data_prep.scoring.lookup import write_lookup
from data_prep.scoring.result import OF_REJECTED, about_scores, check_folders, check_result, write_result
from data_prep.scoring.source import rules_of
from data_prep.sources.source import Block, Source
from data_prep.transforms import FieldRule
from data_prep.work import Task, Usage, WorkDirectory


@dataclass(frozen=True, kw_only=True)
class ScoringSummary:
    """What was scored.

    Attributes:
        rows: Rows of the input, and of the result.
        rejected: The malformed ones, without a score.
        mean: Of the scores.
        unknown: By categorical field, the share of the scored rows whose token has no id.
    """

    rows: int
    rejected: int
    mean: float
    unknown: Mapping[str, float]


def predict(
    model: nn.Module,
    manifest: Manifest,
    source: Source,
    output: str,
    *,
    batch_size: int = BATCH_SIZE,
    max_bad_rows: float = MAX_BAD_ROWS,
    resume: Literal["auto", "never"] = "auto",
    overwrite: bool = True,
    usage: Usage | None = None,
    emit: Emit = no_events,
    options: ResourceOptions = AUTOMATIC,
) -> ScoringSummary:
    """Score raw rows into one Parquet file: row, score, logit, and what the source carries along.

    Args:
        model: Called with ids and numbers.
        manifest: What makes raw rows inputs of the model (``preprocessing.load``).
        source: The rows (``open_source``).
        output: The file. Beside it lie ``OUTPUT.work`` while the job runs, and ``OUTPUT.rejected``
            where rows are malformed.
        batch_size: Rows of a batch.
        max_bad_rows: Largest tolerated share of malformed rows.
        resume: ``auto`` goes on after an interruption, ``never`` starts anew.
        overwrite: Whether scores of another model, or of other rows, may be replaced; the job asks for that.
        usage: Where to note what the workers needed.
        emit: Gets the events of lost tasks.
        options: What each task gets of the cluster.

    Raises:
        DataError: damaged vocabularies, too many malformed rows, an input that changes meanwhile, or
            logits that are not finite.
        OptionError: the output would overwrite something else, or an option is out of range.
    """
    output = storage.absolute(output)
    digest = model_digest(model)
    check(
        source,
        output,
        batch_size=batch_size,
        max_bad_rows=max_bad_rows,
        model=digest,
        overwrite=overwrite,
    )
    ensure_ray(object_bytes=model_bytes(model))
    resources = task_resources(options)
    plan = {
        "version": __version__,
        "model": digest,
        "preprocessing": manifest.fingerprint(),
        **source.identity(),
        "keep": {name: str(kind) for name, kind in source.kept.items()},
        "batch_size": batch_size,
        "device": resources.device,
        "inputs": [asdict(file) for file in source.inputs],
        "blocks": storage.fingerprint([asdict(block) for block in source.blocks()]),
    }
    work = WorkDirectory(
        f"{output}.work",
        plan,
        keep=resume == "auto",
        usage=usage or Usage(),
        resources=resources,
        emit=emit,
    )
    console.info(f"scoring to {output}{' (interrupted before, going on)' if work.resumed else ''}")
    work.begin()
    return _Prediction(model, manifest, source, output, work, resources, plan).run(batch_size, max_bad_rows)


def check(
    source: Source,
    output: str,
    *,
    batch_size: int,
    max_bad_rows: float,
    model: str | None = None,
    overwrite: bool = True,
) -> None:
    """Refuse options that ``predict`` could not follow; arguments as there, and the digest of the model.

    Raises:
        OptionError: the output would overwrite something else, or an option is out of range.
    """
    output = storage.absolute(output)
    if batch_size < 1:
        raise OptionError(f"--batch-size {batch_size}: must be at least 1")
    if not 0 <= max_bad_rows <= 1:
        raise OptionError(f"--max-bad-rows {max_bad_rows}: must be a share between 0 and 1")
    if taken := [name for name in (ROW, SCORE, LOGIT) if name in source.kept]:
        raise OptionError(f"--keep {', '.join(taken)}: the result has such a column of its own; rename yours")
    check_result(output, source.inputs, model, overwrite=overwrite)
    check_folders(output)


class _Prediction:
    """The stages, in order; each reads what the one before returned."""

    def __init__(
        self,
        model: nn.Module,
        manifest: Manifest,
        source: Source,
        output: str,
        work: WorkDirectory,
        resources: TaskResources,
        plan: dict[str, Any],
    ) -> None:
        self.model = model
        self.manifest = manifest
        self.source = source
        self.output = output
        self.work = work
        self.resources = resources
        self.plan = plan
        self.rules = rules_of(manifest)
        self.rejected = f"{output}.rejected"
        # Named after the plan: a late task of another job writes elsewhere.
        self.name = storage.fingerprint(plan)[:16]

    def run(self, batch_size: int, max_bad_rows: float) -> ScoringSummary:
        blocks = scan(self.source, self.work, stage=f"scan-{self.name}")
        scoring = BlockScorer(
            inputs=InputMaker(
                source=self.source, manifest=self.manifest, rules=self.rules, lookups=self.lookups()
            ),
            shared=share(self.model),
            device=self.resources.device,
            batch_size=batch_size,
            parts=self.work.folder(f"parts-{self.name}"),
            rejected=self.rejected,
            name=self.name,
            max_rejected=most_rejected([block for block, _ in blocks], max_bad_rows),
        )
        receipts = self.score(scoring, blocks)
        summary = self.check(receipts, max_bad_rows)
        check_unchanged(self.source, self.plan)
        parts = [scoring.part(index) for index in range(len(blocks))]
        about = about_scores(self.plan["model"], self.source.inputs)
        write_result(parts, part_schema(self.source.kept), self.output, about, summary.rows)
        self.remove_rejected_of_others()
        self.work.remove()
        return summary

    def remove_rejected_of_others(self) -> None:
        """What a late task of another plan wrote after the folder was cleared."""
        for name in storage.list_names(self.rejected):
            if OF_REJECTED.fullmatch(name) and not name.startswith(f"part-{self.name}-"):
                storage.remove(storage.join(self.rejected, name))

    def lookups(self) -> dict[str, str]:
        """By field, where its lookup lies."""
        rules = [rule for rule in self.rules if rule.kind == "categorical"]
        folder = self.work.folder(f"lookups-{self.name}")
        places = {
            rule.name: storage.join(folder, f"field-{index:05d}.arrow") for index, rule in enumerate(rules)
        }
        source = ray.put(self.source)
        tasks = [
            Task(
                key=f"field-{index:05d}",
                function=_write_lookup,
                arguments=(self.manifest, rule, source, places[rule.name]),
                result=Count,
                weight=self.manifest.vocabulary[rule.name].rows,
            )
            for index, rule in enumerate(rules)
        ]
        one_cpu = TaskResources(cpus=self.resources.cpus)
        self.work.run(
            f"vocabulary-{self.name}", "reading vocabularies", tasks, unit="tokens", resources=one_cpu
        )
        return places

    def score(self, scoring: BlockScorer, blocks: Sequence[tuple[Block, int]]) -> list[ScoredBlock]:
        """Leave the parts."""
        self.work.once("clear-rejected", lambda: storage.remove(self.rejected))
        shared = ray.put(scoring)
        tasks = [
            Task(
                key=f"block-{index:05d}",
                function=score_block,
                arguments=(shared, index, block, first_row),
                result=ScoredBlock,
                weight=block.expected_rows,
            )
            for index, (block, first_row) in enumerate(blocks)
        ]
        return self.work.run(f"score-{self.name}", "scoring", tasks)

    def check(self, receipts: Sequence[ScoredBlock], max_bad_rows: float) -> ScoringSummary:
        """What was scored, unless too many rows were not.

        Raises:
            DataError: naming the first offenders.
        """
        rows, rejected = sum(each.rows for each in receipts), sum(each.rejected for each in receipts)
        offenders = [text for each in receipts for text in each.offenders][:REJECTED_SHOWN]
        if rejected > max_bad_rows * rows:
            raise DataError(
                f"{rejected:,} of {rows:,} rows are malformed, more than --max-bad-rows {max_bad_rows:g} "
                f"allows; the first: {'; '.join(offenders)}; all are in {self.rejected}"
            )
        unknown: Counter[str] = Counter()
        for each in receipts:
            unknown.update(each.unknown)
        scored = max(1, rows - rejected)
        return ScoringSummary(
            rows=rows,
            rejected=rejected,
            mean=sum(each.clicks for each in receipts) / scored,
            unknown={name: count / scored for name, count in unknown.items()},
        )


def _write_lookup(manifest: Manifest, rule: FieldRule, source: Source, target: str) -> int:
    return write_lookup(manifest, rule, source, target)
