"""The interactions of each architecture as functions of the codes: what serving computes behind the lookup.

An architecture without a form of its own, or one in which what the form rewrites is itself compressed, is
served as it is, on expanded codes.
Shape legend: B batch, F fields, C numeric fields, T embedding dimension, K_i code dimension of
field i.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn

from afm_dist.models.base import CTRModel
from afm_dist.models.dcn import DCN, CrossLayer
from afm_dist.models.deepfm import DeepFM
from afm_dist.models.layers import factorization_machine
from afm_dist.tables.folding import folded_linear
from afm_dist.tables.table import Decoder, Table


def interactions_of(model: CTRModel) -> nn.Module:
    """Make a module from codes (B, ΣK_i) and numbers (B, C) to the logit less its first-order term, (B,).

    Args:
        model: In eval mode; becomes a part of the result. Its tables may be empty.
    """
    if type(model) is DeepFM and reads_codes(model):
        return DeepFMInteractions(model)
    if type(model) is DCN and reads_codes(model) and _crosses_are_linear(model):
        return DCNInteractions(model)
    return Interactions(model)


class Interactions(nn.Module):
    """The model's own, on the embeddings of the codes."""

    def __init__(self, model: CTRModel) -> None:
        super().__init__()
        self.expansion = Expansion(model.embedding)
        self.model = model

    def forward(self, codes: Tensor, numeric: Tensor) -> Tensor:
        """Codes (B, ΣK_i) and numbers (B, C) -> (B,)."""
        return self.model.interactions(codes, self.expansion(codes), numeric)


class Expansion(nn.Module):
    """Embeddings of the codes of a row, in one product: e = c·blocks + b.

    Args:
        table: With the projections, or without.

    Attributes:
        blocks: The projections, each in the place of its field, shape (ΣK_i, F·T).
        bias: Shape (F·T,).
    """

    blocks: Tensor
    bias: Tensor

    def __init__(self, table: Table) -> None:
        super().__init__()
        self.dim = table.dim
        self.projected = projected(table)
        if self.projected:
            self.register_buffer("blocks", blocks_of(table).float())
            self.register_buffer("bias", biases_of(table).flatten().float())

    def forward(self, codes: Tensor) -> Tensor:
        """(B, ΣK_i) -> (B, F, T)."""
        vectors = torch.addmm(self.bias, codes, self.blocks) if self.projected else codes
        embeddings: Tensor = vectors.unflatten(1, (-1, self.dim))
        return embeddings


class FactorizationMachine(nn.Module):
    """Σ_{i<j} e_i·e_j over e_i = P_i c_i + b_i as a quadratic form of the codes: cᵀQc + lᵀc + k.

    With P = [P_1 … P_F] and B = Σ b_i: 2Q = PᵀP − diag(P_iᵀP_i), l = PᵀB − [P_iᵀb_i] and
    2k = ‖B‖² − Σ‖b_i‖². Without projections it stays as it is.

    Args:
        table: With the projections.
    """

    form: Tensor
    slope: Tensor
    constant: Tensor

    def __init__(self, table: Table) -> None:
        super().__init__()
        self.dim = table.dim
        self.projected = projected(table)
        if not self.projected:
            return
        blocks, biases = blocks_of(table), biases_of(table)
        P = blocks.unflatten(1, biases.shape).sum(1).T  # (T, ΣK_i)
        total = biases.sum(0)
        slope = P.T @ total - blocks @ biases.flatten()
        self.register_buffer("form", ((P.T @ P - blocks @ blocks.T) / 2).float())
        self.register_buffer("slope", slope.float())
        self.register_buffer("constant", ((total @ total - biases.square().sum()) / 2).float())

    def forward(self, codes: Tensor) -> Tensor:
        """(B, ΣK_i) -> (B,)."""
        if not self.projected:
            return factorization_machine(codes.unflatten(1, (-1, self.dim)))
        return (torch.addmm(self.slope, codes, self.form) * codes).sum(1) + self.constant


class DeepFMInteractions(nn.Module):
    """FM(e) + MLP([e, numeric]), both from the codes."""

    def __init__(self, model: DeepFM) -> None:
        super().__init__()
        self.machine = FactorizationMachine(model.embedding)
        self.mlp = model.mlp

    def forward(self, codes: Tensor, numeric: Tensor) -> Tensor:
        """Codes (B, ΣK_i) and numbers (B, C) -> (B,)."""
        logits: Tensor = self.machine(codes) + self.mlp(torch.cat([codes, numeric], 1)).squeeze(1)
        return logits


class DCNInteractions(nn.Module):
    """w·cross(x₀) + MLP([e, numeric]), x₀ = [e, numeric], without forming x₀.

    A cross x ↦ x₀ (xᵀw) + b + x keeps x = αx₀ + β with a number α and a constant β: α grows by
    α x₀ᵀw + βᵀw, β by b. All that is needed of x₀ are its products with the crosses' w and with the output's,
    and those are linear in the codes.

    Attributes:
        products: x₀ᵀw of every cross and of the output.
    """

    constants: Tensor

    def __init__(self, model: DCN) -> None:
        super().__init__()
        self.mlp = model.mlp
        crosses = cast("list[CrossLayer]", list(model.cross))
        weights = torch.cat([*(layer.linear.weight for layer in crosses), model.cross_output.weight])
        products = nn.Linear(weights.shape[1], len(weights), bias=False).to(weights)
        products.weight.copy_(weights)
        self.products = on_codes(products, model.embedding)
        biases = torch.stack([torch.zeros_like(crosses[0].bias), *(layer.bias for layer in crosses)])
        betas = biases.detach().double().cumsum(0)
        self.register_buffer("constants", (betas * weights.detach().double()).sum(1).float())

    def forward(self, codes: Tensor, numeric: Tensor) -> Tensor:
        """Codes (B, ΣK_i) and numbers (B, C) -> (B,)."""
        inputs = torch.cat([codes, numeric], 1)
        *crosses, output = self.products(inputs).unbind(1)
        *betas, last = self.constants.unbind()
        alpha = torch.ones_like(output)
        for product, beta in zip(crosses, betas, strict=True):
            alpha = alpha + alpha * product + beta
        logits: Tensor = alpha * output + last + self.mlp(inputs).squeeze(1)
        return logits


def _crosses_are_linear(model: DCN) -> bool:
    """Return whether neither a cross nor the output behind them is itself compressed."""
    crosses = cast("list[CrossLayer]", list(model.cross))
    return all(isinstance(each, nn.Linear) for each in (model.cross_output, *(c.linear for c in crosses)))


def on_codes(linear: nn.Linear, table: Table) -> nn.Linear:
    """Turn a linear layer over [e, numeric] (B, F·T + C) into one over [codes, numeric] (B, ΣK_i + C)."""
    return folded_linear(linear, table) if projected(table) else linear


def reads_codes(model: CTRModel) -> bool:
    """Return whether the MLP's inputs are the codes: folded, or the embeddings themselves."""
    return model.embedding.folded or not projected(model.embedding)


def projected(table: Table) -> bool:
    """Return whether codes are expanded by projections, and are not the embeddings themselves."""
    return table.decoder(0) is not None


def blocks_of(table: Table) -> Tensor:
    """The projections, each in the rows of its field's codes and the columns of its embedding, float64.

    Returns:
        Shape (ΣK_i, F·T): embeddings = codes @ blocks + biases.
    """
    T = table.dim
    decoders = _decoders(table)
    blocks = decoders[0].bias.new_zeros(
        math.prod(table.code_shape), len(table.names) * T, dtype=torch.float64
    )
    for i, decoder in enumerate(decoders):
        blocks[table.code_columns(i), i * T : (i + 1) * T] = decoder.projection.T
    return blocks


def biases_of(table: Table) -> Tensor:
    """Return the biases of the fields' embeddings, shape (F, T), float64."""
    return torch.stack([decoder.bias.detach().double() for decoder in _decoders(table)])


def _decoders(table: Table) -> list[Decoder]:
    """List the decoders of all fields, of a table with projections."""
    found = [table.decoder(i) for i in range(len(table.names))]
    return [decoder for decoder in found if decoder is not None]
