"""A module compiled for batches of any size."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from afm_dist.errors import OptionError

# What the compiler assumes of a batch when it decides how to share work among threads.
_TYPICAL_BATCH = 1024


class Compiled(nn.Module):
    """A module under ``torch.compile``, which is done at once, with a batch of a dynamic size.

    Args:
        module: From ids (B, F) and numbers (B, C) to logits (B,).
        n_fields: F.
        n_numeric: C.

    Raises:
        OptionError: it cannot be compiled.
    """

    def __init__(self, module: nn.Module, n_fields: int, n_numeric: int) -> None:
        super().__init__()
        self.module = module
        self._compiled = torch.compile(module, fullgraph=True)
        device = next(module.buffers()).device
        ids = torch.zeros(_TYPICAL_BATCH, n_fields, dtype=torch.int64, device=device)
        numeric = torch.zeros(_TYPICAL_BATCH, n_numeric, device=device)
        for tensor in (ids, numeric):
            torch._dynamo.mark_dynamic(tensor, 0)
        try:
            self(ids, numeric)
        except (torch._dynamo.exc.BackendCompilerFailed, torch._inductor.exc.InductorError) as error:
            reason = " ".join(str(error).split())
            raise OptionError(
                f"compiling the model failed ({reason}); leave it out. It needs a C++ compiler, e.g. the "
                "package g++, and room for its files"
            ) from error

    def forward(self, ids: Tensor, numeric: Tensor) -> Tensor:
        """Ids (B, F) and numbers (B, C) -> logits (B,)."""
        # Batches of none and of one would each be compiled anew.
        if len(ids) == 0:
            empty: Tensor = self.module(ids, numeric)
            return empty
        with torch.inference_mode():
            if len(ids) == 1:
                twice = (tensor.expand(2, -1).contiguous() for tensor in (ids, numeric))
                logits: Tensor = self._compiled(*twice)[:1]
            else:
                logits = self._compiled(ids, numeric)
        return logits
