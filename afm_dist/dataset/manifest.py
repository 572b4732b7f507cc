"""The contract between ``data_prep`` and everything else: what a dataset directory holds.

A dataset directory has ``manifest.json``, ``vocabulary/<field>.parquet`` (columns id, token,
count; ids by descending count; id 0 = unknown) and ``<split>/part-NNNNN.parquet``. What is not
in the manifest does not exist.

Shard columns: the label (``uint8``, 0 or 1), one ``int32`` column of ids per categorical field
(0 <= id < cardinality), one ``float32`` column per numeric field (already transformed; null =
missing).
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from itertools import chain, pairwise
from typing import Annotated, Any, Literal, NotRequired, TypedDict, get_args

from msgspec import Meta

from afm_dist import storage
from afm_dist.errors import DataError

FORMAT_VERSION = 2
FILE_NAME = "manifest.json"
MAX_GROUPS = 256

Count = Annotated[int, Meta(ge=0)]
FieldKind = Literal["categorical", "numeric"]
FIELD_KINDS: tuple[FieldKind, ...] = get_args(FieldKind)
RowOrder = Literal["log", "shuffled"]
ROW_ORDERS: tuple[RowOrder, ...] = get_args(RowOrder)


@dataclass(frozen=True, kw_only=True)
class Field:
    """One input of the model.

    Attributes:
        name: Column name in the shards.
        kind: ``categorical`` (ids) or ``numeric`` (float32).
        cardinality: Number of ids including 0 = unknown; 0 for a numeric field.
        mean: Of the transformed values over the training split (numeric fields).
        deviation: Standard deviation of the same; the shards hold ``(… − mean) / deviation``.
        column: The raw column it was made from.
        transform: How (``data_prep.transforms``), so that a raw row can be encoded alike.
    """

    name: str
    kind: FieldKind
    cardinality: Count = 0
    mean: float = 0.0
    deviation: float = 1.0
    column: str = ""
    transform: str = ""

    def __post_init__(self) -> None:
        if self.kind not in FIELD_KINDS:
            raise ValueError(
                f"kind {self.kind!r} of field {self.name!r}: choose from {', '.join(FIELD_KINDS)}"
            )


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One Parquet file, of a split or a vocabulary: path inside the dataset, size, rows, SHA-256."""

    path: str
    rows: Count
    bytes: Count
    sha256: str


class _Source(TypedDict, total=False):
    """An input of a preparation."""

    name: str | None
    bytes: Count | None
    sha256: str | None


class _SplitFacts(TypedDict, total=False):
    """Of one split."""

    rows: Count | None
    positives: Count | None


class _Synthetic(TypedDict):
    """Of a planted log."""

    shape: str


class _Facts(TypedDict, total=False):
    """What is read of the facts; there may be others."""

    source: str | None
    threshold: Count | None
    rows_read: Count | None
    rows_rejected: Count | None
    splits: dict[str, _SplitFacts]
    missing_share: dict[str, float | None]
    unknown_share: dict[str, dict[str, float]]
    bayes_auc: float | None
    bayes_log_loss: float | None
    bayes_split: str | None
    spellings: dict[str, str]
    synthetic: _Synthetic


class _Described(TypedDict):
    """What is checked, and stays as it is."""

    format_version: int
    sources: list[_Source]
    facts: _Facts


class _Stored(TypedDict):
    """What ``manifest.json`` holds."""

    label: str
    fields: tuple[Field, ...]
    splits: dict[str, tuple[Shard, ...]]
    vocabulary: dict[str, Shard]
    preset: str
    seed: int
    row_order: NotRequired[RowOrder]
    sources: tuple[dict[str, Any], ...]
    facts: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A dataset directory's table of contents.

    Attributes:
        location: Where the dataset lies (not part of the file).
        label: Name of the label column.
        fields: Categorical and numeric fields, in model order.
        splits: For ``train``, ``validation``, ``test``: the shards in order.
        vocabulary: By name of a categorical field: the file with its ids, tokens and counts.
        preset: Name of the preparation protocol.
        seed: Seed of the split, and of the order of the training rows.
        row_order: Of the training rows: ``shuffled``, a random order; or ``log``, that of the log, as
            in datasets of earlier releases. Other splits have the log's.
        sources: What the dataset was made from: name, bytes, sha256 of each input.
        facts: Further things worth reporting (label rates, Bayes AUC of a synthetic log, …).
    """

    location: str
    label: str
    fields: tuple[Field, ...]
    splits: Mapping[str, tuple[Shard, ...]]
    vocabulary: Mapping[str, Shard] = field(default_factory=dict)
    preset: str = "default"
    seed: int = 0
    row_order: RowOrder = "log"
    sources: tuple[Mapping[str, Any], ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.row_order not in ROW_ORDERS:
            raise ValueError(f"row order {self.row_order!r}: choose from {', '.join(ROW_ORDERS)}")

    @property
    def categorical(self) -> tuple[Field, ...]:
        """The categorical fields, in order."""
        return tuple(f for f in self.fields if f.kind == "categorical")

    @property
    def numeric(self) -> tuple[Field, ...]:
        """The numeric fields, in order."""
        return tuple(f for f in self.fields if f.kind == "numeric")

    @property
    def files(self) -> tuple[Shard, ...]:
        """All files but the manifest itself: vocabularies, then shards."""
        return (*self.vocabulary.values(), *chain.from_iterable(self.splits.values()))

    def rows(self, split: str) -> int:
        """Rows of one split; 0 where it has none."""
        return sum(shard.rows for shard in self.splits.get(split, ()))

    def positives(self, split: str) -> int | None:
        """Rows of one split with label 1; None where no fact says it."""
        facts = self.facts.get("splits")
        known = facts.get(split) if isinstance(facts, Mapping) else None
        found = known.get("positives") if isinstance(known, Mapping) else None
        return found if type(found) is int and 0 <= found <= self.rows(split) else None

    def shards(self, split: str) -> tuple[Shard, ...]:
        """Return the shards of one split, in order.

        Raises:
            DataError: the dataset has no such split, or no rows in it.
        """
        shards = self.splits.get(split, ())
        if not self.rows(split):
            present = ", ".join(name for name in self.splits if self.rows(name)) or "none"
            raise DataError(
                f"{self.location}: no '{split}' rows (splits with rows: {present}); "
                "prepare the data again with a larger share for it"
            )
        return shards

    def groups(self, split: str, max_groups: int = MAX_GROUPS) -> list[tuple[Shard, ...]]:
        """Shards of a split in at most ``max_groups`` contiguous groups of nearly equal number.

        A function of the manifest alone, never of the cluster: this is what makes the sum of
        the groups' partial results the same bits everywhere.
        """
        shards = self.shards(split)
        n_groups = min(max_groups, len(shards))
        bounds = [i * len(shards) // n_groups for i in range(n_groups + 1)]
        return [shards[a:b] for a, b in pairwise(bounds)]

    def read(self, file: Shard) -> bytes:
        """Read one of the files, its checksum verified.

        Raises:
            DataError: the file is missing, truncated or altered.
        """
        location = storage.join(self.location, file.path)
        content = storage.read_bytes(location)
        if len(content) != file.bytes or storage.sha256(content) != file.sha256:
            raise _altered(location, len(content), file)
        return content

    def check(self, file: Shard) -> None:
        """Do as ``read``, in pieces: for files that need not fit in memory.

        Raises:
            DataError: the file is missing, truncated or altered.
        """
        location = storage.join(self.location, file.path)
        size = storage.size(location)
        if size != file.bytes or storage.file_sha256(location) != file.sha256:
            raise _altered(location, size, file)

    def schema(self) -> list[dict[str, Any]]:
        """Return the fields as plain values: what a checkpoint must agree with."""
        return [asdict(f) for f in self.fields]

    def fingerprint(self) -> str:
        """Digest of the whole content (all files' checksums included), not of the location."""
        return storage.fingerprint(self._to_json())

    def _to_json(self) -> dict[str, Any]:
        return {
            "format_version": FORMAT_VERSION,
            "label": self.label,
            "fields": self.schema(),
            "preset": self.preset,
            "seed": self.seed,
            # Not said by earlier releases: their datasets keep their fingerprints.
            **({"row_order": self.row_order} if self.row_order != "log" else {}),
            "sources": [dict(source) for source in self.sources],
            "facts": dict(self.facts),
            "vocabulary": {name: asdict(file) for name, file in self.vocabulary.items()},
            "splits": {name: [asdict(shard) for shard in shards] for name, shards in self.splits.items()},
        }

    def save(self) -> None:
        """Write ``manifest.json``: the last act of a preparation."""
        storage.write_json(storage.join(self.location, FILE_NAME), self._to_json())

    @classmethod
    def load(cls, location: str) -> Manifest:
        """Read the manifest of a dataset directory.

        Raises:
            DataError: there is none, its version or content is not understood, or a file that it lists does
                not lie in the directory.
        """
        path = storage.join(location, FILE_NAME)
        if not storage.exists(path):
            raise DataError(
                f"{location}: not a dataset directory (no {FILE_NAME}); "
                "make one with: python jobs/prepare.py --output DIR …"
            )
        fix = "prepare the data again"
        content = storage.read_json(path, dict[str, Any], fix=fix)
        version = content.get("format_version")
        if version != FORMAT_VERSION:
            raise DataError(
                f"{path}: format version {reprlib.repr(version)} is unknown (this release reads "
                f"{FORMAT_VERSION}); {fix}"
            )
        found = storage.as_typed(content, _Stored, source=path, fix=fix)
        storage.as_typed(content, _Described, source=path, fix=fix)
        names = [found["label"], *(each.name for each in found["fields"])]
        if twice := [name for name in names if names.count(name) > 1]:
            raise DataError(f"{path}: damaged (two columns are named {twice[0]!r}); {fix}")
        manifest = cls(location=location, **found)
        storage.check_inside(location, (file.path for file in manifest.files), source=path)
        return manifest


def _altered(location: str, size: int, file: Shard) -> DataError:
    state = f"{size} bytes" if size != file.bytes else "altered content"
    return DataError(
        f"{location}: {state} where the manifest promises {file.bytes} bytes with another checksum; "
        "the file is truncated or altered, prepare the data again"
    )
