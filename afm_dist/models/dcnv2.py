"""DCN-V2 (Wang et al., WWW 2021): DCN whose crosses have a full matrix in place of a vector."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from afm_dist.models.dcn import DCN


class MatrixCrossLayer(nn.Module):
    """x ↦ x₀ ⊙ (Wx + b) + x (eq. 1).

    Args:
        width: Of x.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, first: Tensor, x: Tensor) -> Tensor:
        """Cross the network's input x₀ with this layer's x, both (B, width) -> (B, width)."""
        crossed: Tensor = first * self.linear(x) + x
        return crossed


class DCNv2(DCN):
    """Logit = linear(x) + w·cross([e, numeric]) + MLP([e, numeric]), in the paper's parallel structure.

    Args and Raises: as in ``DCN``.
    """

    cross_layer: ClassVar[type[nn.Module]] = MatrixCrossLayer
