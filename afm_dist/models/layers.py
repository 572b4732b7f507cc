"""Layers that the architectures share.

Shape legend: B batch, F categorical fields, C numeric fields, T embedding dimension.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class MLP(nn.Sequential):
    """Linear and ReLU layers with dropout, ending in one output.

    The linear layers are the children ``0``, ``3``, ``6``, …, so that the paper's second and
    third linear layers of ``mlp`` are ``mlp.3`` and ``mlp.6``, and the output layer is the last.

    Args:
        in_features: Width of the input.
        hidden: Widths of the hidden layers.
        dropout: Probability during training.
    """

    def __init__(self, in_features: int, hidden: Sequence[int], dropout: float) -> None:
        layers: list[nn.Module] = []
        for width in hidden:
            layers += [nn.Linear(in_features, width), nn.ReLU(), nn.Dropout(dropout)]
            in_features = width
        layers.append(nn.Linear(in_features, 1))
        super().__init__(*layers)


def hidden_linears(prefix: str, n_hidden: int) -> list[str]:
    """Names of an ``MLP``'s hidden linear layers in order."""
    return [f"{prefix}.{3 * i}" for i in range(n_hidden)]


def flat_inputs(vectors: Tensor, numeric: Tensor) -> Tensor:
    """Embeddings and numbers side by side: (B, F, T) and (B, C) -> (B, F·T + C)."""
    return torch.cat([vectors.flatten(1), numeric], 1)


def bi_interaction(vectors: Tensor) -> Tensor:
    """Sum of pairwise element-wise products, ½((Σe)² − Σe²) (He & Chua, 2017, eq. 3): (B, F, T) -> (B, T)."""
    return (vectors.sum(1).square() - vectors.square().sum(1)) / 2


def factorization_machine(vectors: Tensor) -> Tensor:
    """Sum of pairwise dot products (Rendle, 2010): (B, F, T) -> (B,)."""
    return bi_interaction(vectors).sum(1)


def check_sizes(**sizes: int | Sequence[int]) -> None:
    """Refuse numbers of things and widths below 1.

    Raises:
        ValueError: names the option and its value.
    """
    for name, value in sizes.items():
        numbers = tuple(value) if isinstance(value, Sequence) else (value,)
        if min(numbers, default=1) < 1:
            shown = numbers if isinstance(value, Sequence) else value
            raise ValueError(f"{name} {shown}: must be at least 1")
