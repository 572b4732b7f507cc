"""The forward pass in training: compiled, and in lower precision, where the recipe says so."""

from __future__ import annotations

import subprocess
import sys

import torch
from torch import Tensor, nn

from afm_dist.dataset.batch import Batch
from afm_dist.errors import OptionError
from afm_dist.training.recipe import Precision, Recipe

_TRIAL = """
import torch
with torch.autocast("cpu", dtype=torch.bfloat16):
    torch.nn.Linear(64, 64)(torch.ones(64, 64)).float().sum().backward()
"""


class Forward:
    """Calls a model on a batch; gives float32 logits.

    Compiled code serves full batches only: another size would be compiled again, for one batch of an
    epoch. So which batch takes which way is a function of the recipe and the number of workers.

    Args:
        model: Called with ids (B, F) and numbers (B, C); gives logits (B,).
        recipe: Says how.
        world_size: Workers that share a batch.

    Raises:
        OptionError: this processor, or this GPU, does not have the precision.
    """

    def __init__(self, model: nn.Module, recipe: Recipe, world_size: int = 1) -> None:
        self._model = model
        self._device = next(model.parameters()).device
        check_precision(recipe.precision, self._device)
        self._autocast = recipe.precision == "bfloat16"
        self._compiled = torch.compile(model, dynamic=False) if recipe.compile else model
        # A worker's part of a full batch has one of two lengths.
        self._full = range(recipe.batch_size // world_size, -(-recipe.batch_size // world_size) + 1)

    def __call__(self, batch: Batch) -> Tensor:
        """Compute the logits of a batch, shape (B,), float32.

        Raises:
            OptionError: it cannot be compiled.
        """
        model = self._compiled if len(batch) in self._full else self._model
        with torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=self._autocast):
            try:
                logits: Tensor = model(batch.ids.long(), batch.numeric)
            except torch._dynamo.exc.BackendCompilerFailed as error:
                reason = " ".join(str(error.inner_exception).split())
                raise OptionError(
                    f"--compile: compiling the model failed ({reason}); leave the option out. It needs a C++ "
                    "compiler on every node, e.g. the package g++, and room for its files"
                ) from error
        return logits.float()


def check_precision(precision: Precision, device: torch.device) -> None:
    """Refuse a precision that the hardware would only emulate, or does not survive.

    Raises:
        OptionError: it would.
    """
    if precision == "float32":
        return
    if device.type == "cuda":
        found = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        capabilities = torch.cpu.get_capabilities()
        found = bool(capabilities.get("avx512_bf16") or capabilities.get("bf16"))
    if not found:
        raise OptionError(
            f"--precision {precision}: the {device.type} of this worker has no such arithmetic, and would be "
            "slower with it; leave the option out"
        )
    # Some virtual machines announce AMX and end a process that uses it (SIGILL): seen from outside.
    if device.type == "cpu" and subprocess.run([sys.executable, "-c", _TRIAL], check=False).returncode < 0:
        raise OptionError(
            f"--precision {precision}: the processor of this worker announces it, but a product in it ended "
            "the process; leave the option out, or try ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16 in the "
            "environment of the workers"
        )
