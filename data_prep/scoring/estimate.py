"""What scoring raw rows takes: rough, and starts nothing."""

from __future__ import annotations

from dataclasses import replace

import pyarrow as pa

from afm_dist import storage
from afm_dist.checkpoint.config import ModelConfig
from afm_dist.dataset.manifest import Manifest, Shard
from afm_dist.planning.capacity import Estimate, JobPlan, size
from afm_dist.planning.estimate import PROCESS_BYTES, Costs
from afm_dist.runtime import console
from afm_dist.runtime.resources import ResourceOptions
from data_prep.dry_run import MEMORY_PER_WORKER, ROWS_PER_SECOND_AND_CORE
from data_prep.sources.source import Source
from data_prep.vocabulary import RANGE_TOKENS

SPLIT = "rows"
# Row number, score and logit: once in the parts, once in the result.
BYTES_PER_ROW = 2 * 16
# A value to carry along that has no fixed size; it lies in a part and in the result too.
BYTES_PER_TEXT = 20
# A token or a view of one, and its id.
BYTES_PER_TOKEN = 20
# While a lookup is made: a range of the tokens as read, as put together, without repetitions, and sorted.
# Measured with 2 million tokens of 15 characters.
SORTING_BYTES_PER_TOKEN = 400


def scoring_plan(
    config: ModelConfig, manifest: Manifest, source: Source, output: str, options: ResourceOptions
) -> JobPlan:
    """Memory, disk and time of scoring some rows, and what the cluster has.

    Args:
        config: The model.
        manifest: What makes raw rows inputs of it.
        source: The rows.
        output: The file to write.
        options: What tasks get.
    """
    blocks = source.blocks()
    rows = sum(block.expected_rows for block in blocks)
    # As if the blocks were the shards of a split.
    shards = tuple(Shard(path="", rows=block.expected_rows, bytes=0, sha256="") for block in blocks)
    as_split = replace(manifest, splits={SPLIT: shards or (Shard(path="", rows=0, bytes=0, sha256=""),)})
    costs = Costs.of(config, as_split, options=options)
    scoring = costs.scoring("score", SPLIT)
    tokens = sum(file.rows for file in manifest.vocabulary.values())
    mapped = "mapped from disk"
    if not storage.is_local(output):
        mapped = f"copied by each worker process to TMPDIR, {size(tokens * BYTES_PER_TOKEN)} each"
    seconds = scoring.seconds
    if seconds is not None:
        at_once = max(1, min(costs.cluster.cpus, costs.tasks.slots(costs.cluster.nodes), len(shards)))
        seconds += rows / ROWS_PER_SECOND_AND_CORE / at_once
    estimate = replace(
        scoring,
        tasks=max(1, len(blocks)),
        memory=scoring.memory + MEMORY_PER_WORKER,
        driver=PROCESS_BYTES + costs.bytes,
        disk=rows * (BYTES_PER_ROW + 2 * sum(map(_bytes_per_value, source.kept.values()))),
        seconds=seconds,
        note=f"{console.counted(len(blocks), 'block')}; vocabularies {mapped}",
    )
    fields = manifest.vocabulary.values()
    largest = min(RANGE_TOKENS, max((file.rows for file in fields), default=0))
    vocabulary = Estimate(
        stage="vocabulary",
        place="tasks",
        tasks=max(1, len(fields)),
        memory=PROCESS_BYTES + SORTING_BYTES_PER_TOKEN * largest,
        driver=estimate.driver,
        disk=tokens * BYTES_PER_TOKEN,
        seconds=None,
        note=f"{tokens:,} tokens of {len(fields):,} fields",
    )
    return costs.plan([vocabulary, estimate], output=output)


def _bytes_per_value(kind: pa.DataType) -> int:
    try:
        return -(-int(kind.bit_width) // 8)
    except ValueError:
        return BYTES_PER_TEXT
