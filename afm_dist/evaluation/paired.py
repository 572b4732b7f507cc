"""Whether two models differ by more than their seeds do: a paired t-test."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

# Differences that chance alone would exceed more often than this are called noise.
SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Paired:
    """Differences of the same seeds.

    Attributes:
        mean: Of the differences.
        deviation: Sample standard deviation of the differences.
        p: How often a mean at least so far from 0 would occur if there were no difference, two-sided. None
            where all differences are the same: then nothing varies with the seed, and there is no test.
    """

    mean: float
    deviation: float
    p: float | None

    @property
    def noise(self) -> bool:
        """Whether chance explains the difference well enough."""
        return self.p is not None and self.p >= SIGNIFICANT


def paired(differences: Sequence[float]) -> Paired:
    """Perform Student's paired t-test.

    Args:
        differences: One per seed, at least two.

    Raises:
        ValueError: fewer than two.
    """
    if len(differences) < 2:
        raise ValueError("a paired test needs two differences or more")
    mean, deviation = statistics.mean(differences), statistics.stdev(differences)
    if deviation == 0:
        return Paired(mean, 0.0, None)
    t = mean / (deviation / math.sqrt(len(differences)))
    return Paired(mean, deviation, student_p(t, len(differences) - 1))


def student_p(t: float, degrees: int) -> float:
    """Compute P(|T| ≥ |t|) of Student's distribution with a whole number of degrees of freedom.

    Source: Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.3 and 26.7.4.
    """
    angle = math.atan2(abs(t), math.sqrt(degrees))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = degrees % 2
    term, total = (cosine if odd else 1.0), 0.0
    for k in range(1 + odd, degrees, 2):
        total += term
        term *= cosine**2 * k / (k + 1)
    inside = sine * total if not odd else 2 / math.pi * (angle + sine * total)
    return min(1.0, max(0.0, 1 - inside))
