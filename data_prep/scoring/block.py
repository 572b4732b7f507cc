"""One block of raw rows to one part of the scores: what a task does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import nn

from afm_dist import storage
from afm_dist.dataset.batch import Batch
from afm_dist.dataset.shard import Columns
from afm_dist.errors import DataError
from afm_dist.runtime.machine import work_with_threads
from afm_dist.runtime.resources import Device
from afm_dist.runtime.sharing import SharedModel, load_shared
from data_prep.parse import checked
from data_prep.rejected import RejectedRows
from data_prep.scoring.inputs import InputMaker
from data_prep.sources.source import Block, RawRows, Rejected
from data_prep.transforms import FieldRule

SCORE, LOGIT, ROW = "score", "logit", "row"
# Deviations from the mean. Among n training rows none is further than √n from it: no log holds such a row.
EXTREME = 1e6


@dataclass(frozen=True, kw_only=True)
class BlockScorer:
    """What the scoring of every block has in common.

    Attributes:
        inputs: Makes raw rows inputs of the model.
        shared: The model in the object store.
        device: Type of the device it runs on.
        batch_size: Rows of a batch.
        parts: Folder of the parts.
        rejected: Folder of the malformed rows.
        name: Of the plan, for the names of the files in it.
        max_rejected: A block with more of them ends the job at once.
    """

    inputs: InputMaker
    shared: SharedModel
    device: Device
    batch_size: int
    parts: str
    rejected: str
    name: str
    max_rejected: int

    @property
    def schema(self) -> pa.Schema:
        """Of a part."""
        return part_schema(self.inputs.source.kept)

    def part(self, index: int) -> str:
        """Where the part of a block lies."""
        return storage.join(self.parts, f"part-{index:05d}.arrow")


@dataclass(kw_only=True)
class ScoredBlock:
    """What a block held.

    Attributes:
        rows: Rows, good or bad: so many has its part.
        rejected: The malformed ones.
        offenders: The first of these, as ``file:line reason``.
        clicks: Sum of the scores.
        unknown: By categorical field, rows whose token has no id.
    """

    rows: int = 0
    rejected: int = 0
    offenders: list[str] = field(default_factory=list)
    clicks: float = 0.0
    unknown: dict[str, int] = field(default_factory=dict)


def part_schema(kept: Mapping[str, pa.DataType]) -> pa.Schema:
    """Columns of a part: score and logit, null for a malformed row, then what is carried along."""
    return pa.schema([(SCORE, pa.float32()), (LOGIT, pa.float32()), *kept.items()])


def score_block(scoring: BlockScorer, index: int, block: Block, first_row: int) -> dict[str, Any]:
    """Score one block in bounded memory.

    Args:
        scoring: What to do.
        index: Of the block, for the names of its files.
        block: The piece of the input.
        first_row: Number of its first row within its file.

    Returns:
        A ``ScoredBlock`` as plain values.

    Raises:
        DataError: more rows are malformed than the whole input may hold, or a logit is not finite and
            no input is to blame.
    """
    work_with_threads(1)
    source = scoring.inputs.source
    path = source.paths[block.file]
    model = load_shared(scoring.shared).to(scoring.device)
    receipt, unknown = ScoredBlock(), Counter[str]()
    rejects = RejectedRows(scoring.rejected, index, path, plan=scoring.name)
    with (
        storage.open_write(scoring.part(index)) as sink,
        pa.ipc.new_file(sink, scoring.schema) as writer,
    ):
        for raw in source.read(block, first_row):
            rows = checked(raw, source, scoring.inputs.rules)
            logits, missed = np.empty(0, dtype=np.float32), dict[str, int]()
            if len(rows.numbers):
                columns, missed = scoring.inputs.make(rows)
                logits = _logits(model, columns, scoring)
                finite = np.isfinite(logits)
                if not finite.all():
                    extreme = _extreme(finite, rows, columns, scoring.inputs.rules, path)
                    rows, logits = rows.filter(finite).with_rejected(extreme), logits[finite]
                    _, missed = scoring.inputs.make(rows)
            rejects.take(rows.rejected)
            rejects.check(scoring.max_rejected)
            unknown.update(missed)
            scores = torch.sigmoid(torch.from_numpy(logits).double())
            batch = _in_order(rows, scores.float().numpy(), logits, scoring.schema)
            writer.write_batch(batch)
            receipt.rows += batch.num_rows
            receipt.clicks += float(scores.sum())
    rejects.flush()
    receipt.rejected, receipt.offenders = rejects.count, rejects.offenders
    receipt.unknown = dict(unknown)
    return vars(receipt)


def _logits(model: nn.Module, columns: Columns, scoring: BlockScorer) -> np.ndarray:
    """(B) float32."""
    logits = np.empty(len(columns), dtype=np.float32)
    with torch.inference_mode():
        for start in range(0, len(columns), scoring.batch_size):
            rows = slice(start, start + scoring.batch_size)
            batch: Batch = columns[rows].to(scoring.device)
            logits[rows] = model(batch.ids, batch.numeric).float().cpu().numpy()
    return logits


def _extreme(
    finite: np.ndarray, rows: RawRows, columns: Columns, rules: Sequence[FieldRule], path: str
) -> list[Rejected]:
    """The rows whose logit is not finite, each with the number that no model could take.

    Args:
        finite: (B) whether the logit is.
        rows: B rows.
        columns: Their inputs.
        rules: How the fields are made, in model order.
        path: The file, for messages.

    Raises:
        DataError: all numbers of such a row are sane, so that the model is at fault.
    """
    numeric = [rule for rule in rules if rule.kind == "numeric"]
    rejected = []
    for row in np.flatnonzero(~finite):
        line, sizes = int(rows.lines[row]), np.abs(columns.numeric[:, row])
        if not numeric or sizes.max() <= EXTREME:
            raise DataError(
                f"{path}:{line} has a logit that is not finite; the model diverged when it was trained, or "
                "is damaged"
            )
        name = numeric[int(sizes.argmax())].column
        value = rows.columns[name].values[int(rows.columns[name].codes[row])]
        rejected.append(
            Rejected(line=line, reason=f"{name} {value} is so extreme that the logit is not finite", text="")
        )
    return rejected


def _in_order(rows: RawRows, scores: np.ndarray, logits: np.ndarray, schema: pa.Schema) -> pa.RecordBatch:
    """Good and malformed rows in the order of their lines; what a malformed one should hold is null."""
    columns = [pa.array(scores), pa.array(logits), *rows.kept.values()]
    if rows.rejected:
        lines = np.concatenate([rows.lines, [bad.line for bad in rows.rejected]])
        order = pa.array(np.argsort(lines, kind="stable"))
        nulls = len(rows.rejected)
        columns = [pa.concat_arrays([column, pa.nulls(nulls, column.type)]).take(order) for column in columns]
    return pa.record_batch(columns, schema=schema)
