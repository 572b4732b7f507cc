"""A model in the form for inference: the same logits, laid out for speed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from afm_dist.errors import OptionError
from afm_dist.models.base import CTRModel
from afm_dist.serving.compiled import compiled
from afm_dist.serving.rows import PRECISIONS, Precision
from afm_dist.serving.scorer import Scorer

# Rows that a thread scores at a time. All that is computed of them stays in its second-level cache, and
# needs no memory from the operating system, which hands out a large batch's activations page by page.
_BLOCK = 1024


def prepare_for_inference(
    model: nn.Module, *, precision: Precision = "float32", compile: bool = False
) -> nn.Module:
    """Make a new module that gives the logits of a model of this library, laid out for serving.

    A lookup reads the code of an id and its first-order weight from one place; projections are folded into
    what reads the codes; large batches are scored in blocks that stay in the cache. It has no gradients, and
    takes memory of its own: that of the tables once more. ``torch.export`` takes it, with a dynamic batch.

    Args:
        model: Compressed or not; is not changed.
        precision: Of the table in memory. All else, and every computation, is float32. With ``float32`` the
            logits are the model's to 1e-5, or 1e-5 of the largest where that is more; ``bfloat16`` halves
            the table and ``int8`` (rows with a step of their own, first-order weights in two bytes) makes it
            smaller still where codes are wide: see ``afm_dist.serving.rows`` for what the numbers are off by.
        compile: Compile it with ``torch.compile``, here and now, for batches of any size and torch's present
            number of threads. Needs a C++ compiler. A copy of the result is not compiled.

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
    if compile:
        prepared.compile_for_any_batch()
    return prepared


class InferenceModel(nn.Module):
    """What ``prepare_for_inference`` gives.

    Args:
        model: Is not changed.
        precision: Of the table in memory.

    Attributes:
        scorer: What is compiled and exported.
    """

    def __init__(self, model: CTRModel, precision: Precision) -> None:
        super().__init__()
        self.scorer = Scorer(model, precision)
        self._score: Callable[[Tensor, Tensor], Tensor] | None = None

    def compile_for_any_batch(self) -> None:
        """Have it compiled from now on.

        Raises:
            OptionError: it cannot be compiled.
        """
        self._score = compiled(self.scorer)

    def train(self, mode: bool = True) -> InferenceModel:
        """Stays in eval mode: it has nothing to train, and serves in whatever it is a part of."""
        del mode
        return super().train(False)

    def __getstate__(self) -> dict[str, Any]:
        """Without what was compiled, which goes on scoring with this module's weights: copies are eager."""
        return {**self.__dict__, "_score": None}

    def forward(self, ids: Tensor, numeric: Tensor) -> Tensor:
        """Ids (B, F) and numbers (B, C) -> logits (B,), float32.

        Raises:
            ValueError: an id outside its field's rows, or batches of two sizes. Where torch cannot say so
                at once (exported, or on a GPU) the error is that of the runtime; a row of another field is
                never read.
        """
        if torch.compiler.is_compiling():
            exported: Tensor = self.scorer(ids, numeric)
            return exported
        if len(ids) != len(numeric):
            raise ValueError(f"ids of {len(ids)} rows and numbers of {len(numeric)}")
        with torch.no_grad():
            return in_blocks(self._score or self.scorer, ids, numeric)


def in_blocks(score: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """Apply a function to a batch, in blocks of rows that stay in the cache.

    Args:
        score: Row by row from the inputs; each row is its own.
        inputs: With the same number of rows.
    """
    size = _BLOCK * torch.get_num_threads()
    if len(inputs[0]) <= size:
        return score(*inputs)
    blocks = zip(*(tensor.split(size) for tensor in inputs), strict=True)
    return torch.cat([score(*block) for block in blocks])
