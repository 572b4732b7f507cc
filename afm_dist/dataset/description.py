"""What there is to know about a dataset before a model is trained on it, as plain values.

The manifest says most of it; the vocabularies say how the training rows spread over the ids. Nothing
here reads a shard.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from afm_dist import storage
from afm_dist.dataset.frequencies import Frequencies, Vocabulary, read_vocabulary
from afm_dist.dataset.manifest import FILE_NAME, Field, Manifest
from afm_dist.errors import DataError

TOP_TOKENS = 5
HEADS = (1, 10, 100, 1_000, 10_000)
COVERED_PERCENT = 90
THRESHOLDS = (2, 5, 10, 20, 50, 100)


@dataclass(frozen=True, kw_only=True)
class Split:
    """One split; what its shards do not tell is None where no fact says it.

    Attributes:
        name: ``train``, ``validation``, ``test``.
        rows: Of all its shards.
        positives: Rows with label 1.
        shards: Number of files.
        bytes: Of all its shards.
    """

    name: str
    rows: int
    positives: int | None
    shards: int
    bytes: int

    @property
    def label_rate(self) -> float | None:
        """Share of the rows with label 1."""
        return self.positives / self.rows if self.rows and self.positives is not None else None


@dataclass(frozen=True, kw_only=True)
class Token:
    """A token and its share of the training rows; the missing value is the empty token."""

    token: str
    share: float


@dataclass(frozen=True, kw_only=True)
class CategoricalField:
    """A field of ids.

    Attributes:
        name: Of the field.
        column: The raw column it was made from; empty: not known.
        transform: How; empty: not known.
        cardinality: Number of ids, id 0 = unknown included.
        coverage: Share of the training rows whose token has an id of its own.
        heads: Shares of the training rows that the 1, 10, 100, … (``HEADS``) most frequent ids
            other than 0 make up.
        ids_for_90_percent: How many of the most frequent ids other than 0 make up 90 % of the
            training rows; None: all of them make up less.
        missing_share: Share of the rows of all splits without a value; None: not known.
        unknown_share: By name of a held-out split, the share of its rows with id 0.
        top: The most frequent tokens, in order.
    """

    name: str
    column: str
    transform: str
    cardinality: int
    coverage: float
    heads: tuple[float, ...]
    ids_for_90_percent: int | None
    missing_share: float | None
    unknown_share: Mapping[str, float]
    top: tuple[Token, ...]


@dataclass(frozen=True, kw_only=True)
class NumericField:
    """A field of numbers; the shards hold ``(transformed − mean) / deviation``.

    Attributes:
        name: Of the field.
        column: The raw column it was made from; empty: not known.
        transform: How; empty: not known.
        mean: Of the transformed values over the training split.
        deviation: Standard deviation of the same.
        missing_share: Share of the rows of all splits without a value; None: not known.
    """

    name: str
    column: str
    transform: str
    mean: float
    deviation: float
    missing_share: float | None


@dataclass(frozen=True, kw_only=True)
class ThresholdEffect:
    """What would be left if tokens that occur fewer than ``threshold`` times had no id of their own.

    Attributes:
        threshold: That of the dataset, or a higher one.
        ids: Of all categorical fields, an id 0 for each included.
        coverage: Share of the tokens of all training rows and categorical fields with such an id.
        least_coverage: That of the field that is covered least.
        least_covered: Its name.
    """

    threshold: int
    ids: int
    coverage: float
    least_coverage: float
    least_covered: str


@dataclass(frozen=True, kw_only=True)
class RawFile:
    """A raw file the dataset was made from; None: not known."""

    name: str
    bytes: int | None
    sha256: str | None


@dataclass(frozen=True, kw_only=True)
class BestScore:
    """What the true probabilities of a synthetic log score: no model can do better."""

    auc: float
    log_loss: float | None
    split: str | None


@dataclass(frozen=True, kw_only=True)
class Description:
    """A dataset directory in figures, all of them plain values.

    Attributes:
        name: Of the directory.
        label: Name of the label column.
        preset: Name of the preparation protocol.
        seed: Seed of the split.
        threshold: Tokens counted fewer times in the training split have id 0; None: not known.
        source: Name of the raw format; None: not known.
        inputs: The raw files.
        rows_read: Of the raw files; None: not known.
        rows_rejected: Malformed ones among them; None: not known.
        splits: In order.
        categorical: In order.
        numeric: In order.
        thresholds: What the threshold and higher ones leave; empty where the threshold is not known.
        best: Of a synthetic log.
    """

    name: str
    label: str
    preset: str
    seed: int
    threshold: int | None
    source: str | None
    inputs: tuple[RawFile, ...]
    rows_read: int | None
    rows_rejected: int | None
    splits: tuple[Split, ...]
    categorical: tuple[CategoricalField, ...]
    numeric: tuple[NumericField, ...]
    thresholds: tuple[ThresholdEffect, ...]
    best: BestScore | None

    @property
    def ids(self) -> int:
        """Ids of all categorical fields."""
        return sum(field.cardinality for field in self.categorical)

    @property
    def held_out(self) -> tuple[str, ...]:
        """Names of the splits of which unknown shares are known."""
        named = {name for field in self.categorical for name in field.unknown_share}
        return tuple(split.name for split in self.splits if split.name in named)

    @classmethod
    def of(cls, manifest: Manifest) -> Description:
        """Describe a dataset: reads the counts of its vocabularies, and no shard.

        The fields, their vocabularies and training rows are required. Facts are not: a dataset that
        was made by other tools may lack any of them.

        Raises:
            DataError: a vocabulary is missing or damaged, there are no training rows, or a fact
                is not what its name says.
        """
        manifest.shards("train")
        vocabularies = {f.name: read_vocabulary(manifest, f, TOP_TOKENS) for f in manifest.categorical}
        try:
            return _describe(manifest, vocabularies)
        except (TypeError, ValueError, AttributeError) as error:
            location = storage.join(manifest.location, FILE_NAME)
            raise DataError(f"{location}: damaged facts ({error}); prepare the data again") from error


def _describe(manifest: Manifest, vocabularies: Mapping[str, Vocabulary]) -> Description:
    facts = manifest.facts
    threshold = _whole(facts.get("threshold"))
    auc = _number(facts.get("bayes_auc"))
    return Description(
        name=storage.absolute(manifest.location).rstrip("/").rpartition("/")[2],
        label=manifest.label,
        preset=manifest.preset,
        seed=manifest.seed,
        threshold=threshold,
        source=facts.get("source"),
        inputs=tuple(
            RawFile(
                name=str(source.get("name", "?")),
                bytes=_whole(source.get("bytes")),
                sha256=source.get("sha256"),
            )
            for source in manifest.sources
        ),
        rows_read=_whole(facts.get("rows_read")),
        rows_rejected=_whole(facts.get("rows_rejected")),
        splits=tuple(
            Split(
                name=name,
                rows=sum(shard.rows for shard in shards),
                positives=_whole(facts.get("splits", {}).get(name, {}).get("positives")),
                shards=len(shards),
                bytes=sum(shard.bytes for shard in shards),
            )
            for name, shards in manifest.splits.items()
        ),
        categorical=tuple(_categorical(f, vocabularies[f.name], facts) for f in manifest.categorical),
        numeric=tuple(
            NumericField(
                name=f.name,
                column=f.column,
                transform=f.transform,
                mean=f.mean,
                deviation=f.deviation,
                missing_share=_missing_share(facts, f),
            )
            for f in manifest.numeric
        ),
        thresholds=_thresholds(threshold, {name: v.frequencies for name, v in vocabularies.items()}),
        best=None
        if auc is None
        else BestScore(
            auc=auc, log_loss=_number(facts.get("bayes_log_loss")), split=facts.get("bayes_split")
        ),
    )


def _categorical(field: Field, vocabulary: Vocabulary, facts: Mapping[str, Any]) -> CategoricalField:
    frequencies = vocabulary.frequencies
    rows = frequencies.rows
    return CategoricalField(
        name=field.name,
        column=field.column,
        transform=field.transform,
        cardinality=field.cardinality,
        coverage=frequencies.known / rows,
        heads=tuple(frequencies.rows_of(ids) / rows for ids in HEADS),
        ids_for_90_percent=frequencies.ids_for(-(-COVERED_PERCENT * rows // 100)),
        missing_share=_missing_share(facts, field),
        unknown_share={
            name: float(shares[field.name])
            for name, shares in facts.get("unknown_share", {}).items()
            if field.name in shares
        },
        top=tuple(Token(token=token, share=count / rows) for token, count in vocabulary.top),
    )


def _thresholds(threshold: int | None, frequencies: Mapping[str, Frequencies]) -> tuple[ThresholdEffect, ...]:
    if threshold is None or not frequencies:
        return ()
    return tuple(
        _effect(value, frequencies) for value in (threshold, *(t for t in THRESHOLDS if t > threshold))
    )


def _effect(threshold: int, frequencies: Mapping[str, Frequencies]) -> ThresholdEffect:
    left = {name: of_field.at_least(threshold) for name, of_field in frequencies.items()}
    coverage = {name: known / frequencies[name].rows for name, (_, known) in left.items()}
    least = min(coverage, key=lambda name: coverage[name])
    return ThresholdEffect(
        threshold=threshold,
        ids=sum(ids + 1 for ids, _ in left.values()),
        coverage=sum(coverage.values()) / len(coverage),
        least_coverage=coverage[least],
        least_covered=least,
    )


def _missing_share(facts: Mapping[str, Any], field: Field) -> float | None:
    return _number(facts.get("missing_share", {}).get(field.name))


def _number(fact: Any) -> float | None:
    return None if fact is None else float(fact)


def _whole(fact: Any) -> int | None:
    return None if fact is None else int(fact)
