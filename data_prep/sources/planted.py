"""A planted click model: logs whose best possible AUC is known.

Tokens follow a Zipf law per field. The log-odds of a click add up hidden effects of tokens and of
the hour of the day, products of hidden vectors of rank 4 for some pairs of fields, and smooth
effects of the numbers. Effects fade with a token's rank, so that a model can learn most of them
from a few 100,000 rows.

Every row is a function of (shape, seed, row number) alone: rows are drawn in blocks, each from a
random stream of its own. (Machines whose ``exp`` or ``log`` round differently may disagree in the
last bit of a probability.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from data_prep.sources.planted_shapes import LogShape
from data_prep.split import splitmix64, uniform

BLOCK_ROWS = 1 << 16
PART_ROWS = 4 * BLOCK_ROWS
"""Rows of one file, which cover the days of the shape from the first hour to the last."""

HOURS_PER_DAY = 24
RANK = 4
CALIBRATION_ROWS = 1 << 17
CALIBRATION_STREAM = 1 << 40

FIRST_ORDER = 0.55
SECOND_ORDER = 0.40
NUMERIC = 0.45
HOURLY = 0.15
FADING_RANK = 30.0


@dataclass(frozen=True, kw_only=True)
class PlantedRows:
    """Consecutive rows: ``B`` rows, ``I`` numeric and ``F`` categorical fields.

    Attributes:
        number: (B) int64 row numbers in the log.
        key: (B) uint64, different for every row of a log.
        hour: (B) int64 hours since the first; all zero where the shape has no days.
        integers: (B, I) int64.
        integer_missing: (B, I) booleans.
        ids: (B, F) int64 ranks of the tokens; a field's cardinality stands for missing.
        probability: (B) true probability of a click.
        label: (B) uint8.
    """

    number: np.ndarray
    key: np.ndarray
    hour: np.ndarray
    integers: np.ndarray
    integer_missing: np.ndarray
    ids: np.ndarray
    probability: np.ndarray
    label: np.ndarray


class PlantedModel:
    """The hidden truth that belongs to a seed; every effect is a hash of (seed, field, token).

    Args:
        shape: What the log looks like.
        seed: Any integer.
    """

    def __init__(self, shape: LogShape, seed: int) -> None:
        self.shape = shape
        self.seed = seed
        self._pairs = [(shape.position(left), shape.position(right)) for left, right in shape.pairs]
        self._integer_missing = np.array([field.missing for field in shape.integers])
        self._log_mean = np.array([field.log_mean for field in shape.integers])
        self._log_deviation = np.array([field.log_deviation for field in shape.integers])
        self._shift = np.array([field.shift for field in shape.integers], dtype=np.int64)

    def block(self, index: int) -> PlantedRows:
        """The rows of one block, independent of all other blocks."""
        generator = np.random.default_rng([self.seed & (2**64 - 1), index])
        number = np.arange(index * BLOCK_ROWS, (index + 1) * BLOCK_ROWS)
        hour = self._hour(number)
        integers, missing, ids = self._draw(generator, BLOCK_ROWS)
        scale, intercept = self._calibration
        probability = _sigmoid(scale * self._score(hour, integers, missing, ids) + intercept)
        return PlantedRows(
            number=number,
            key=splitmix64(number.astype(np.uint64) ^ _hash(self.seed, 23, 0, np.zeros(1))),
            hour=hour,
            integers=integers,
            integer_missing=missing,
            ids=ids,
            probability=probability,
            label=(generator.random(BLOCK_ROWS) < probability).astype(np.uint8),
        )

    def token_codes(self, field: int) -> np.ndarray:
        """The field's tokens by rank: distinct uint32 (a bijective mix, so no two collide)."""
        ranks = np.arange(self.shape.tokens[field].cardinality, dtype=np.uint32)
        code = ranks ^ np.uint32(_hash(self.seed, 1, field, np.zeros(1))[0] & np.uint64(0xFFFFFFFF))
        for multiplier, shift in ((0x85EBCA6B, 16), (0xC2B2AE35, 13), (1, 16)):
            code = (code ^ (code >> np.uint32(shift))) * np.uint32(multiplier)
        return code

    def _hour(self, number: np.ndarray) -> np.ndarray:
        return number % PART_ROWS * (self.shape.days * HOURS_PER_DAY) // PART_ROWS

    def _draw(self, generator: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        normal = generator.standard_normal((count, len(self.shape.integers)))
        sizes = np.exp(self._log_mean + self._log_deviation * normal)
        integers = np.floor(np.minimum(sizes, 5e7)).astype(np.int64) - self._shift
        missing = generator.random(normal.shape) < self._integer_missing
        # By column: each is written, and looked up, as a whole.
        ids = np.empty((count, len(self.shape.tokens)), dtype=np.int64, order="F")
        for index, field in enumerate(self.shape.tokens):
            ids[:, index] = np.searchsorted(self._zipf[index], generator.random(count), side="right")
            ids[generator.random(count) < field.missing, index] = field.cardinality
        return integers, missing, ids

    @cached_property
    def _zipf(self) -> list[np.ndarray]:
        """Cumulative probabilities per field, without the final 1."""
        result = []
        for index, field in enumerate(self.shape.tokens):
            weights = np.arange(1, field.cardinality + 1, dtype=np.float64) ** -(1.05 + 0.05 * (index % 5))
            result.append((np.cumsum(weights) / weights.sum())[:-1])
        return result

    @cached_property
    def _effects(self) -> list[np.ndarray]:
        return [
            _normal(_hash(self.seed, 2, index, np.arange(field.cardinality + 1))) * _fading(field.cardinality)
            for index, field in enumerate(self.shape.tokens)
        ]

    @cached_property
    def _vectors(self) -> dict[int, np.ndarray]:
        result = {}
        for field in sorted({field for pair in self._pairs for field in pair}):
            n = self.shape.tokens[field].cardinality
            parts = [_normal(_hash(self.seed, 3 + r, field, np.arange(n + 1))) for r in range(RANK)]
            result[field] = np.stack(parts, axis=1) * _fading(n)[:, None] / RANK**0.25
        return result

    def _score(
        self, hour: np.ndarray, integers: np.ndarray, missing: np.ndarray, ids: np.ndarray
    ) -> np.ndarray:
        """Log-odds (B) before scale and intercept."""
        score = np.zeros(len(ids))
        for field, effects in enumerate(self._effects):
            score += FIRST_ORDER / len(self._effects) ** 0.5 * effects[ids[:, field]]
        for left, right in self._pairs:
            product = self._vectors[left][ids[:, left]] * self._vectors[right][ids[:, right]]
            score += SECOND_ORDER / len(self._pairs) ** 0.5 * product.sum(axis=1)
        if self.shape.integers:
            score += self._numeric_score(integers, missing)
        if self.shape.days:
            effects = _normal(_hash(self.seed, 22, 0, np.arange(HOURS_PER_DAY)))
            score += HOURLY * effects[hour % HOURS_PER_DAY]
        return score

    def _numeric_score(self, integers: np.ndarray, missing: np.ndarray) -> np.ndarray:
        columns = np.arange(integers.shape[1])
        slopes = _normal(_hash(self.seed, 20, 0, columns))
        bends = _normal(_hash(self.seed, 21, 0, columns))
        levels = np.log1p(np.maximum(integers + self._shift, 0))
        standard = (levels - self._log_mean) / self._log_deviation
        curves = np.tanh(standard) * slopes + np.cos(standard) * bends
        score: np.ndarray = NUMERIC / len(columns) ** 0.5 * np.where(missing, 0.5 * bends, curves).sum(axis=1)
        return score

    @cached_property
    def _calibration(self) -> tuple[float, float]:
        """Scale and intercept that give the wanted share of positives and Bayes AUC."""
        generator = np.random.default_rng([self.seed & (2**64 - 1), CALIBRATION_STREAM])
        hour = self._hour(np.arange(0, PART_ROWS, PART_ROWS // CALIBRATION_ROWS))
        # Every 16th of the sorted scores stands for its neighbours.
        score = np.sort(self._score(hour, *self._draw(generator, CALIBRATION_ROWS)))[8::16]

        def intercept(scale: float) -> float:
            return _bisect(
                lambda b: float(_sigmoid(scale * score + b).mean()), self.shape.positive_share, -30.0, 30.0
            )

        def auc(scale: float) -> float:
            positive = _sigmoid(scale * score + intercept(scale))
            negative = 1 - positive
            below = np.cumsum(negative) - negative / 2
            return float((positive * below).sum() / (positive.sum() * negative.sum()))

        scale = _bisect(auc, self.shape.bayes_auc, 0.0, 20.0)
        return scale, intercept(scale)


def _bisect(increasing: Callable[[float], float], goal: float, low: float, high: float) -> float:
    for _ in range(40):
        middle = (low + high) / 2
        if increasing(middle) < goal:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _sigmoid(values: np.ndarray) -> np.ndarray:
    result: np.ndarray = 1 / (1 + np.exp(-values))
    return result


def _hash(seed: int, purpose: int, field: int, tokens: np.ndarray) -> np.ndarray:
    key = splitmix64(np.array([seed & (2**64 - 1)], dtype=np.uint64)) ^ np.uint64(purpose << 32 | field)
    return splitmix64(splitmix64(key) ^ splitmix64(tokens))


def _normal(hashes: np.ndarray) -> np.ndarray:
    """Standard normal numbers from hashes (Box and Muller)."""
    radius = np.sqrt(-2 * np.log1p(-uniform(hashes)))
    angle: np.ndarray = np.cos(2 * np.pi * uniform(splitmix64(hashes)))
    normal: np.ndarray = radius * angle
    return normal


def _fading(cardinality: int) -> np.ndarray:
    """Factor per rank; the last entry, for the missing value, is 1."""
    ranks = np.arange(cardinality + 1, dtype=np.float64)
    ranks[-1] = 0
    factors: np.ndarray = 1 / np.sqrt(1 + ranks / FADING_RANK)
    return factors
