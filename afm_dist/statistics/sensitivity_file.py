"""The sensitivity of the logit on disk: one safetensors file, E[ggᵀ] by the names of the moments.

Its metadata hold a digest of the tensors; a file of an older release has none, and is taken as it is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from afm_dist import storage
from afm_dist.errors import DataError
from afm_dist.statistics.moments_file import read_metadata

DIGEST = "digest"


def save_sensitivity(location: str, sensitivity: Mapping[str, Tensor]) -> None:
    """Write what ``output_sensitivity`` found."""
    tensors = {key: product.contiguous() for key, product in sensitivity.items()}
    storage.write_bytes(location, safetensors.torch.save(tensors, {DIGEST: _digest(tensors)}))


def load_sensitivity(location: str) -> dict[str, Tensor]:
    """Read it back.

    Raises:
        DataError: no such file, or one that is damaged or altered.
    """
    content = storage.read_bytes(location)
    try:
        found: dict[str, Tensor] = safetensors.torch.load(content)
        recorded = read_metadata(content, location).get(DIGEST)
    except (SafetensorError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{location}: damaged ({error}); delete it and run again") from error
    if recorded is not None and recorded != _digest(found):
        raise DataError(f"{location}: damaged (altered since it was written); delete it and run again")
    return found


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of the names, types, shapes and exact bits of some tensors."""
    described = [
        [name, str(tensor.dtype), list(tensor.shape), storage.sha256(tensor.numpy().tobytes())]
        for name, tensor in sorted(tensors.items())
    ]
    return storage.sha256(json.dumps(described).encode())
