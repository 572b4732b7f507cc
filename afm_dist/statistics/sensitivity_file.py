"""The sensitivity of the logit on disk: one safetensors file, E[ggᵀ] by the names of the moments."""

from __future__ import annotations

from collections.abc import Mapping

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from afm_dist import storage
from afm_dist.errors import DataError


def save_sensitivity(location: str, sensitivity: Mapping[str, Tensor]) -> None:
    """Write what ``output_sensitivity`` found."""
    tensors = {key: product.contiguous() for key, product in sensitivity.items()}
    storage.write_bytes(location, safetensors.torch.save(tensors))


def load_sensitivity(location: str) -> dict[str, Tensor]:
    """Read it back.

    Raises:
        DataError: no such file, or a damaged one.
    """
    try:
        found: dict[str, Tensor] = safetensors.torch.load(storage.read_bytes(location))
    except SafetensorError as error:
        raise DataError(f"{location}: damaged ({error}); delete it and run again") from error
    return found
