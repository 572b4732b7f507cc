"""A planted click model: logs whose best possible AUC is known.

Tokens follow a Zipf law per field. The log-odds of a click add up hidden effects of tokens,
products of hidden vectors of rank 4 for some pairs of fields, and smooth effects of the numbers.
Effects fade with a token's rank, so that a model can learn most of them from a few 100,000 rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from data_prep.sources.criteo_lines import INTEGERS, TOKENS
from data_prep.split import splitmix64, uniform

POSITIVE_SHARE = 0.256
BAYES_AUC = 0.80
RANK = 4
CALIBRATION_ROWS = 1 << 17
CALIBRATION_STREAM = 1 << 40

# Sizes in the proportions of Criteo's fields, the largest cut to a laptop's measure.
CARDINALITIES = (
    1_460, 583, 50_000, 40_000, 305, 24, 12_517, 633, 3, 30_000, 5_683, 50_000, 3_194,
    27, 14_992, 50_000, 10, 5_652, 2_173, 4, 50_000, 18, 15, 20_000, 105, 15_000,
)  # fmt: skip
TOKEN_MISSING = (
    0.0, 0.0, 0.034, 0.034, 0.0, 0.121, 0.0, 0.0, 0.0, 0.0, 0.0, 0.034, 0.0,
    0.0, 0.0, 0.034, 0.0, 0.0, 0.44, 0.44, 0.034, 0.762, 0.0, 0.034, 0.44, 0.44,
)  # fmt: skip
INTEGER_MISSING = (0.454, 0.0, 0.215, 0.217, 0.026, 0.224, 0.043, 0.0005, 0.043, 0.454, 0.043, 0.765, 0.217)
INTEGER_LOG_MEAN = (0.6, 1.9, 2.0, 1.7, 7.5, 3.6, 1.6, 2.2, 3.8, 0.3, 0.7, 0.2, 1.8)
INTEGER_LOG_DEVIATION = (1.1, 2.0, 1.3, 0.9, 2.2, 1.7, 1.3, 1.0, 1.4, 0.5, 0.8, 0.6, 1.0)
INTEGER_SHIFT = (0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)

# Pairs of fields (by position) whose hidden vectors multiply: small with small, small with large.
PAIRS = ((5, 8), (5, 16), (8, 13), (13, 21), (16, 22), (0, 8), (4, 22), (20, 8))
FIRST_ORDER = 0.55
SECOND_ORDER = 0.40
NUMERIC = 0.45
FADING_RANK = 30.0


@dataclass(frozen=True, kw_only=True)
class PlantedRows:
    """One block of rows.

    Attributes:
        integers: (B, 13) int64.
        integer_missing: (B, 13) booleans.
        ids: (B, 26) int64 ranks of the tokens; a field's cardinality stands for missing.
        probability: (B) true probability of a click.
        label: (B) uint8.
    """

    integers: np.ndarray
    integer_missing: np.ndarray
    ids: np.ndarray
    probability: np.ndarray
    label: np.ndarray


@dataclass(frozen=True)
class PlantedModel:
    """The hidden truth that belongs to a seed; every effect is a hash of (seed, field, token)."""

    seed: int

    def rows(self, block: int, count: int) -> PlantedRows:
        """Rows of one block, independent of all other blocks."""
        generator = np.random.default_rng([self.seed & (2**64 - 1), block])
        integers, missing, ids = self._draw(generator, count)
        scale, intercept = self._calibration
        probability = _sigmoid(scale * self._score(integers, missing, ids) + intercept)
        label = (generator.random(count) < probability).astype(np.uint8)
        return PlantedRows(
            integers=integers, integer_missing=missing, ids=ids, probability=probability, label=label
        )

    def token_codes(self, field: int) -> np.ndarray:
        """The field's tokens by rank: distinct uint32 (a bijective mix, so no two collide)."""
        ranks = np.arange(CARDINALITIES[field], dtype=np.uint32)
        code = ranks ^ np.uint32(_hash(self.seed, 1, field, np.zeros(1))[0] & np.uint64(0xFFFFFFFF))
        for multiplier, shift in ((0x85EBCA6B, 16), (0xC2B2AE35, 13), (1, 16)):
            code = (code ^ (code >> np.uint32(shift))) * np.uint32(multiplier)
        return code

    def _draw(self, generator: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        normal = generator.standard_normal((count, INTEGERS))
        sizes = np.exp(np.array(INTEGER_LOG_MEAN) + np.array(INTEGER_LOG_DEVIATION) * normal)
        integers = np.floor(np.minimum(sizes, 5e7)).astype(np.int64) - np.array(INTEGER_SHIFT)
        missing = generator.random((count, INTEGERS)) < np.array(INTEGER_MISSING)
        ids = np.empty((count, TOKENS), dtype=np.int64)
        for field, cardinality in enumerate(CARDINALITIES):
            ids[:, field] = np.searchsorted(self._zipf[field], generator.random(count), side="right")
            ids[generator.random(count) < TOKEN_MISSING[field], field] = cardinality
        return integers, missing, ids

    @cached_property
    def _zipf(self) -> list[np.ndarray]:
        """Cumulative probabilities per field, without the final 1."""
        result = []
        for field, cardinality in enumerate(CARDINALITIES):
            weights = np.arange(1, cardinality + 1, dtype=np.float64) ** -(1.05 + 0.05 * (field % 5))
            result.append((np.cumsum(weights) / weights.sum())[:-1])
        return result

    @cached_property
    def _effects(self) -> list[np.ndarray]:
        return [
            _normal(_hash(self.seed, 2, field, np.arange(n + 1))) * _fading(n)
            for field, n in enumerate(CARDINALITIES)
        ]

    @cached_property
    def _vectors(self) -> dict[int, np.ndarray]:
        result = {}
        for field in sorted({field for pair in PAIRS for field in pair}):
            n = CARDINALITIES[field]
            parts = [_normal(_hash(self.seed, 3 + r, field, np.arange(n + 1))) for r in range(RANK)]
            result[field] = np.stack(parts, axis=1) * _fading(n)[:, None] / RANK**0.25
        return result

    def _score(self, integers: np.ndarray, missing: np.ndarray, ids: np.ndarray) -> np.ndarray:
        """Log-odds (B) before scale and intercept."""
        score = np.zeros(len(ids))
        for field, effects in enumerate(self._effects):
            score += FIRST_ORDER / TOKENS**0.5 * effects[ids[:, field]]
        for left, right in PAIRS:
            product = self._vectors[left][ids[:, left]] * self._vectors[right][ids[:, right]]
            score += SECOND_ORDER / len(PAIRS) ** 0.5 * product.sum(axis=1)
        slopes = _normal(_hash(self.seed, 20, 0, np.arange(INTEGERS)))
        bends = _normal(_hash(self.seed, 21, 0, np.arange(INTEGERS)))
        levels = np.log1p(np.maximum(integers + np.array(INTEGER_SHIFT), 0))
        standard = (levels - np.array(INTEGER_LOG_MEAN)) / np.array(INTEGER_LOG_DEVIATION)
        curves = np.tanh(standard) * slopes + np.cos(standard) * bends
        score += NUMERIC / INTEGERS**0.5 * np.where(missing, 0.5 * bends, curves).sum(axis=1)
        return score

    @cached_property
    def _calibration(self) -> tuple[float, float]:
        """Scale and intercept that give the wanted share of positives and Bayes AUC."""
        generator = np.random.default_rng([self.seed & (2**64 - 1), CALIBRATION_STREAM])
        # Every 16th of the sorted scores stands for its neighbours.
        score = np.sort(self._score(*self._draw(generator, CALIBRATION_ROWS)))[8::16]

        def intercept(scale: float) -> float:
            return _bisect(lambda b: float(_sigmoid(scale * score + b).mean()), POSITIVE_SHARE, -30.0, 30.0)

        def auc(scale: float) -> float:
            positive = _sigmoid(scale * score + intercept(scale))
            negative = 1 - positive
            below = np.cumsum(negative) - negative / 2
            return float((positive * below).sum() / (positive.sum() * negative.sum()))

        scale = _bisect(auc, BAYES_AUC, 0.0, 20.0)
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
