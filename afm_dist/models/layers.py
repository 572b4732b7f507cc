"""Layers that the architectures share.

Shape legend: B batch, F categorical fields, C numeric fields, T embedding dimension.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

# Of a random number that decides whether an activation stays.
DROPOUT_BITS = 16


class Dropout(nn.Dropout):
    """Dropout (Srivastava et al., 2014) from sixteen random bits a number: on a CPU four times as fast.

    The probability is that of ``nn.Dropout`` to 2⁻¹⁷, and what stays is divided by the share that stays, so
    that the expectation is the input. The same seed gives the same numbers with any number of threads. On
    other devices, and compiled, it is ``nn.Dropout``.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Any shape; the same shape and dtype."""
        values = 1 << DROPOUT_BITS
        dropped = round(self.p * values)
        ours = self.training and 0 < dropped < values and input.is_cpu and not torch.compiler.is_compiling()
        if not ours:
            return super().forward(input)
        words = torch.empty(-(-input.numel() // 4), dtype=torch.int64).random_(-(1 << 63), None)
        drawn = words.view(torch.int16)[: input.numel()].view(input.shape)
        stays = (drawn >= dropped - values // 2).to(input.dtype)
        return input * stays.mul_(values / (values - dropped))


class MLP(nn.Sequential):
    """Linear and ReLU layers with dropout, ending in one output.

    The linear layers are the children ``0``, ``3``, ``6``, …, so that the paper's second and
    third linear layers of ``mlp`` are ``mlp.3`` and ``mlp.6``, and the output layer is the last.

    Args:
        in_features: Width of the input.
        hidden: Widths of the hidden layers.
        dropout: Probability during training.

    Raises:
        ValueError: it is none, or 1, which leaves nothing.
    """

    def __init__(self, in_features: int, hidden: Sequence[int], dropout: float) -> None:
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout {dropout}: a probability lies in [0, 1); try 0.2")
        layers: list[nn.Module] = []
        for width in hidden:
            layers += [nn.Linear(in_features, width), nn.ReLU(), Dropout(dropout)]
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
            shown = " ".join(map(str, numbers))
            raise ValueError(f"{name} {shown}: must be at least 1")
