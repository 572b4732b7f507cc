"""A model in the form for inference: the same logits, laid out for speed."""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from torch import Tensor, nn

from afm_dist.compression.fused import Narrow, folded_linear
from afm_dist.embedding import FusedEmbedding
from afm_dist.errors import OptionError
from afm_dist.first_order import CodedLinearTerm, LinearTerm
from afm_dist.models.base import CTRModel
from afm_dist.serving.compiled import Compiled
from afm_dist.serving.interactions import interactions_of, projected
from afm_dist.serving.rows import PRECISIONS, Precision
from afm_dist.serving.table import PackedTable


class InferenceModel(nn.Module):
    """What ``prepare_for_inference`` gives.

    Args:
        model: Is not changed.
        precision: Of the table in memory; all else is float32.

    Attributes:
        n_fields: F.
        n_numeric: C.
    """

    def __init__(self, model: CTRModel, precision: Precision) -> None:
        super().__init__()
        self.n_fields = model.n_fields
        self.n_numeric = model.n_numeric
        self.table = PackedTable(model.embedding, model.linear, precision)
        rest = _without_tables(model)
        self.first_order = _FirstOrder(rest.linear)
        self.interactions = interactions_of(rest)

    def forward(self, ids: Tensor, numeric: Tensor) -> Tensor:
        """Ids (B, F) and numbers (B, C) -> logits (B,), float32.

        Raises:
            ValueError: an id outside its field's rows. Where torch cannot say so at once (compiled,
                exported, or on a GPU) the error is that of the runtime; a row of another field is never read.
        """
        codes, weight = self.table(ids)
        logits: Tensor = self.first_order(codes, weight, numeric) + self.interactions(codes, numeric)
        return logits


class _FirstOrder(nn.Module):
    """The first-order term from what the packed table gave."""

    def __init__(self, term: LinearTerm | CodedLinearTerm) -> None:
        super().__init__()
        self.numeric = term.numeric
        self.coded = term if isinstance(term, CodedLinearTerm) else None

    def forward(self, codes: Tensor, weight: Tensor | None, numeric: Tensor) -> Tensor:
        """Codes (B, ΣK_i), the sums of the ids' weights (B,) or None, and numbers (B, C) -> (B,)."""
        if weight is None:
            assert self.coded is not None
            logits: Tensor = self.coded(codes, numeric, codes)
            return logits
        return weight + numeric @ self.numeric


def prepare_for_inference(
    model: nn.Module, *, precision: Precision = "float32", compile: bool = False
) -> nn.Module:
    """A new module that gives the logits of a model of this library, laid out for serving.

    A lookup reads the code of an id and its first-order weight from one place; projections are folded into
    what reads the codes. It has no gradients, and takes memory of its own: that of the tables once more.
    ``torch.export`` takes it, with a dynamic batch.

    Args:
        model: Compressed or not; is not changed.
        precision: Of the table in memory. All else, and every computation, is float32. With ``float32`` the
            logits are the model's to 1e-5; ``bfloat16`` halves the table and ``int8`` (rows with a step of
            their own, first-order weights in two bytes) makes it smaller still, if codes are wide: see
            ``afm_dist.serving.rows`` for what the numbers are off by.
        compile: Compile it with ``torch.compile``, here and now, for batches of any size and torch's present
            number of threads. Needs a C++ compiler.

    Returns:
        In eval mode, on the model's device: ids (B, F) int64 and numbers (B, C) float32 -> logits (B,).

    Raises:
        OptionError: a model of another kind, an unknown precision, numbers that the precision cannot hold,
            or a compilation that failed.

    Source:
        Folding: Yu et al. (KDD 2024), eqs. 11 and 12. The layout is ours.
    """
    if precision not in PRECISIONS:
        raise OptionError(f"precision {precision!r}: choose from {', '.join(PRECISIONS)}")
    if not isinstance(model, CTRModel):
        raise OptionError(
            f"a {type(model).__name__} has no form for inference: only the models of afm_dist.models have; "
            "serve it as it is, in eval mode and torch.inference_mode()"
        )
    with torch.no_grad():
        prepared = InferenceModel(model, precision).eval().requires_grad_(False)
    return Compiled(prepared, prepared.n_fields, prepared.n_numeric) if compile else prepared


def _without_tables(model: CTRModel) -> CTRModel:
    """A copy in float32 whose tables have no rows, folded where the model declares that this is right."""
    memo: dict[int, Any] = {}
    for owner in model.modules():
        if isinstance(owner, FusedEmbedding | LinearTerm):
            memo[id(owner.weight)] = nn.Parameter(owner.weight.new_empty(0, owner.weight.shape[1]))
    rest = copy.deepcopy(model, memo).eval().float()
    for name, reader in rest.folds.items():
        table = cast(Narrow, rest.get_submodule(name))
        if projected(table) and not table.folded:
            rest.set_submodule(reader, folded_linear(cast(nn.Linear, rest.get_submodule(reader)), table))
            table.folded = True
    return rest
