"""Models and batches in the shape of Criteo's log: 26 categorical and 13 numeric fields."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from afm_dist.dataset.batch import Batch
from afm_dist.dataset.manifest import Field
from afm_dist.models.deepfm import DeepFM

CATEGORICAL = 26
NUMERIC = 13
EMBEDDING_DIM = 16
INPUTS = CATEGORICAL * EMBEDDING_DIM + NUMERIC


def cardinalities(vocabulary: int, categorical: int = CATEGORICAL) -> list[int]:
    """Rows of each field, about ``vocabulary`` together; the largest has a million times the smallest's."""
    shares = np.geomspace(1, 1e6, categorical)
    return [max(2, int(share)) for share in vocabulary * shares / shares.sum()]


def fields(sizes: Sequence[int], numeric: int = NUMERIC) -> list[Field]:
    """The schema."""
    categorical = [Field(name=f"C{i + 1}", kind="categorical", cardinality=n) for i, n in enumerate(sizes)]
    return [*categorical, *(Field(name=f"I{i + 1}", kind="numeric") for i in range(numeric))]


def deepfm(sizes: Sequence[int], hidden: Sequence[int]) -> DeepFM:
    """DeepFM with random weights."""
    return DeepFM(fields(sizes), embedding_dim=EMBEDDING_DIM, hidden=hidden, dropout=0.0)


def batches(sizes: Sequence[int], rows: int, count: int, numeric: int = NUMERIC) -> list[Batch]:
    """Random rows; id k of a field is drawn with a probability of about 1/(k + 1)."""
    generator = torch.Generator().manual_seed(0)
    limits = torch.tensor(sizes, dtype=torch.float64)

    def ids() -> Tensor:
        drawn = limits.pow(torch.rand(rows, len(sizes), generator=generator, dtype=torch.float64))
        return (drawn.long() - 1).clamp(min=0).int()

    return [
        Batch(
            ids(),
            torch.randn(rows, numeric, generator=generator),
            (torch.rand(rows, generator=generator) < 0.25).float(),
        )
        for _ in range(count)
    ]
