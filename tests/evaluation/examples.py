"""Rows with ties, weights and two labels, as hypothesis draws them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from afm_dist.evaluation.scored_rows import ScoredRows


def probabilities(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    return 1 / (1 + np.exp(-logits.astype(np.float64)))


@dataclass(frozen=True)
class Example:
    """Both labels occur with a weight above 0."""

    labels: NDArray[np.int64]
    logits: NDArray[np.floating]
    weights: NDArray[np.float64] | None

    @property
    def rows(self) -> ScoredRows:
        return ScoredRows.of(self.labels, self.logits, self.weights)

    @property
    def probabilities(self) -> NDArray[np.float64]:
        return probabilities(self.logits)


@st.composite
def examples(draw: st.DrawFn, *, weighted: bool | None = None, most_rows: int = 300) -> Example:
    """Logits are of moderate size: an oracle that gets probabilities loses digits of 1 - p beyond."""
    generator = np.random.default_rng(draw(st.integers(0, 2**31)))
    rows = draw(st.integers(2, most_rows))
    labels = (generator.random(rows) < draw(st.floats(0.01, 0.99))).astype(np.int64)
    labels[:2] = (0, 1)
    scale = draw(st.sampled_from([0.1, 1.0, 1.5]))
    distinct = generator.normal(size=draw(st.integers(1, 2 * most_rows))) * scale
    logits = distinct[generator.integers(0, len(distinct), rows)].astype(draw(st.sampled_from(["f4", "f8"])))
    if weighted is False or not (weighted or draw(st.booleans())):
        return Example(labels, logits, None)
    weights = generator.choice([0.0, 0.1, 1.0, 3.0, generator.exponential(), 1e6], rows)
    weights[:2] = np.maximum(weights[:2], 0.1)
    return Example(labels, logits, weights)
