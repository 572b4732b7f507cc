"""Which row of its file each block begins with: lines are counted before any is parsed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import ray

from afm_dist.dataset.manifest import Count
from data_prep.sources.source import Block, Source
from data_prep.work import Task, WorkDirectory


def scan(source: Source, work: WorkDirectory, *, stage: str = "scan") -> list[tuple[Block, int]]:
    """The blocks of a raw log, with the number of the first row of each within its file.

    Args:
        source: The raw log. A file that turns out not to be cut where its blocks end is one block.
        work: Where the counts are kept.
        stage: In which folder there.
    """
    blocks = source.blocks()
    per_file = Counter(block.file for block in blocks)
    shared_source = ray.put(source)
    # The only block of a file begins at row 0, however many rows it has.
    several = [index for index, block in enumerate(blocks) if per_file[block.file] > 1]
    tasks = [
        Task(
            key=f"block-{index:05d}",
            function=_count_rows,
            arguments=(shared_source, blocks[index]),
            result=Count | None,
            weight=blocks[index].expected_rows,
        )
        for index in several
    ]
    rows = dict(zip(several, work.run(stage, "scanning", tasks), strict=True))
    whole = {blocks[index].file for index, counted in rows.items() if counted is None}
    numbered: list[tuple[Block, int]] = []
    next_row: Counter[int] = Counter()
    for index, block in enumerate(blocks):
        if block.file not in whole:
            numbered.append((block, next_row[block.file]))
            next_row[block.file] += rows.get(index, 0)
        elif block.file not in next_row:
            next_row[block.file] = 0
            numbered.append((_joined([other for other in blocks if other.file == block.file]), 0))
    return numbered


def _joined(blocks: Sequence[Block]) -> Block:
    """All blocks of a file as one."""
    return Block(
        file=blocks[0].file,
        start=blocks[0].start,
        end=blocks[-1].end,
        expected_rows=sum(block.expected_rows for block in blocks),
    )


def _count_rows(source: Source, block: Block) -> int | None:
    return source.count_rows(block)
