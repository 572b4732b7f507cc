"""What the passes found: facts for the manifest, and reasons to stop."""

from __future__ import annotations

from typing import Any

from afm_dist import console
from afm_dist.errors import DataError
from data_prep import counting
from data_prep.counting import GroupCounts
from data_prep.encode import GroupShards
from data_prep.protocol import Protocol
from data_prep.sources.source import Source
from data_prep.split import SPLITS, TRAIN


def make_facts(
    source: Source, protocol: Protocol, total: GroupCounts, encoded: list[GroupShards]
) -> dict[str, Any]:
    """Row counts, label rates, missing and unknown shares."""
    unknown: dict[str, dict[str, float]] = {}
    for index, name in enumerate(SPLITS):
        rows = total.split_rows[index]
        if index == TRAIN or not rows:
            continue
        unknown[name] = {
            field: round(sum(group.unknown[name][field] for group in encoded) / rows, 6)
            for field in source.categorical
        }
    return {
        "source": source.kind,
        "threshold": protocol.threshold,
        "rows_read": total.rows + total.rejected,
        "rows_rejected": total.rejected,
        "splits": {
            name: {"rows": total.split_rows[i], "positives": total.positives[i]}
            for i, name in enumerate(SPLITS)
        },
        "missing_share": {f.name: round(total.missing[f.name] / total.rows, 6) for f in source.fields},
        "unknown_share": unknown,
    }


def check_rejected(source: Source, total: GroupCounts, protocol: Protocol, rejected: str) -> None:
    """Stop when too many rows are malformed, or none is left to train on.

    Raises:
        DataError: naming the first offenders.
    """
    read = total.rows + total.rejected
    if total.rows == 0:
        if total.rejected == 0:
            raise DataError(f"{source.paths[0]}: there are no rows")
        raise DataError(f"{counting.all_rejected(source.label, total)}; see {rejected}")
    if total.rejected > protocol.max_bad_rows * read:
        first = "; ".join(total.offenders)
        raise DataError(
            f"{total.rejected:,} of {read:,} rows are malformed, more than --max-bad-rows "
            f"{protocol.max_bad_rows:g} allows; the first: {first}; all are in {rejected}"
        )
    if total.rejected:
        console.warn(f"{total.rejected:,} of {read:,} rows are malformed and left out; see {rejected}")
    if total.split_rows[TRAIN] == 0:
        raise DataError(f"none of the {total.rows} rows fell into the training split; there are too few")
    for index, name in enumerate(SPLITS):
        rows, positives = total.split_rows[index], total.positives[index]
        if rows and positives in (0, rows):
            console.warn(f"split '{name}' has only labels {int(positives > 0)} ({rows:,} rows)")
