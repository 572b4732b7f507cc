"""Which labels the rows of a split have: whether it can be learned from, chosen by, measured on.

One rule for all jobs. Training and choosing need both labels, and are refused without them at the start;
measuring does not: what is undefined on a split is said to be.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from afm_dist.dataset.manifest import Manifest
from afm_dist.errors import DataError
from afm_dist.runtime import console

FIX = (
    "prepare the data again so that rows of both labels fall into it, with other --validation-from and "
    "--test-from, or larger --validation-share and --test-share"
)
WHY: Mapping[str, str] = {
    "train": "there is nothing to learn from it",
    "validation": "models and their weights are chosen by their AUC on it",
    "test": "models are compared by their AUC on it",
}

SPLITS = tuple(WHY)
TRAINING = ("train", "validation")


@dataclass(frozen=True, kw_only=True)
class Labels:
    """What a split holds.

    Attributes:
        split: Its name.
        rows: Of all its shards.
        present: The labels that occur, of 0 and 1.
    """

    split: str
    rows: int
    present: frozenset[int]

    @property
    def lack(self) -> str | None:
        """What a split without both labels has, in words; None where both occur."""
        if self.rows == 0:
            return f"the {self.split} split has no rows"
        if len(self.present) == 1:
            rows = console.counted(self.rows, "row")
            return f"the {self.split} split has only label {min(self.present)} ({rows})"
        return None

    @classmethod
    def counted(cls, split: str, rows: int, positives: int) -> Labels:
        """From the number of rows, and of those with label 1."""
        counts = {0: rows - positives, 1: positives}
        return cls(split=split, rows=rows, present=frozenset(label for label in counts if counts[label]))

    @classmethod
    def of(cls, manifest: Manifest, split: str) -> Labels:
        """From the manifest's facts, or from shards until both labels were seen: mostly the first.

        Raises:
            DataError: a shard is missing, damaged, or holds other labels.
        """
        rows = manifest.rows(split)
        positives = manifest.positives(split)
        if positives is not None:
            return cls.counted(split, rows, positives)
        from afm_dist.dataset.reader import read_shard  # needs torch, which a preparation does without

        present: set[int] = set()
        for shard in manifest.splits.get(split, ()):
            present |= {int(label) for label in read_shard(manifest, shard).labels.unique()}
            if len(present) == 2:
                break
        return cls(split=split, rows=rows, present=frozenset(present))


def check_labels(manifest: Manifest, splits: Sequence[str] = TRAINING) -> None:
    """Refuse a dataset before anything is started: to train on, it needs both labels in two splits.

    Args:
        manifest: The dataset.
        splits: Those that are needed.

    Raises:
        DataError: one of them lacks a label, or rows.
    """
    for split in splits:
        lack = Labels.of(manifest, split).lack
        if lack is not None:
            raise DataError(f"{manifest.location}: {lack}, and {WHY[split]}; {FIX}")


def warn_of_undefined(labels: Labels) -> None:
    """Warn of a split on which figures are undefined: measuring goes on all the same."""
    if labels.lack is not None:
        what = "AUC is" if labels.rows else "AUC and log loss are"
        console.warn(f"{labels.lack}: {what} undefined on it")


def warn_of_dataset(splits: Sequence[Labels]) -> None:
    """Warn, where a dataset is made, of what ``check_labels`` will refuse and of what will be undefined."""
    for labels in splits:
        if labels.split not in TRAINING:
            warn_of_undefined(labels)
        elif labels.lack is not None:
            console.warn(
                f"{labels.lack}, and {WHY[labels.split]}: train and compress will refuse this dataset; {FIX}"
            )
