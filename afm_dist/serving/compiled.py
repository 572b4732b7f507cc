"""A scorer compiled once, for batches of any size."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from afm_dist.errors import OptionError
from afm_dist.serving.scorer import TYPICAL_BATCH, Scorer


def compiled(scorer: Scorer) -> Callable[[Tensor, Tensor], Tensor]:
    """Compile a function with ``torch.compile``, here and now.

    Args:
        scorer: In eval mode.

    Returns:
        From ids (B, F) and numbers (B, C) to logits (B,), without gradients.

    Raises:
        OptionError: it cannot be compiled.
    """
    program = torch.compile(_function_of(scorer), fullgraph=True)

    def score(ids: Tensor, numeric: Tensor) -> Tensor:
        # Compiled code is called with tensors of one kind only: for another one, an inference tensor for
        # example, or a batch of none or of one, it would be compiled anew, for seconds.
        scorer.table.check(ids)
        if len(ids) == 0:
            empty: Tensor = scorer(ids, numeric)
            return empty
        few = len(ids) == 1
        with torch.inference_mode(False), torch.no_grad():
            same = (_plain(tensor.expand(2, -1) if few else tensor) for tensor in (ids.long(), numeric))
            logits: Tensor = program(*same)
        return logits[:1] if few else logits

    ids, numeric = scorer.example(TYPICAL_BATCH)
    for tensor in (ids, numeric):
        torch._dynamo.mark_dynamic(tensor, 0)
    try:
        score(ids, numeric)
    except (torch._dynamo.exc.BackendCompilerFailed, torch._inductor.exc.InductorError) as error:
        reason = " ".join(str(error).split())
        raise OptionError(
            f"compile: compiling the model failed ({reason}); leave it out. It needs a C++ compiler, for "
            "example the package g++, and room for its files"
        ) from error
    return score


def _function_of(scorer: Scorer) -> Callable[[Tensor, Tensor], Tensor]:
    """The scorer behind code of its own: the compiler keeps with each code what it makes, up to a limit."""

    def program(ids: Tensor, numeric: Tensor) -> Tensor:
        logits: Tensor = scorer(ids, numeric)
        return logits

    program.__code__ = program.__code__.replace()
    return program


def _plain(tensor: Tensor) -> Tensor:
    return (
        tensor.clone(memory_format=torch.contiguous_format) if tensor.is_inference() else tensor.contiguous()
    )
