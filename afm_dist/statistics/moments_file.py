"""Moments on disk: one safetensors file with a checksum of its tensors inside."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

import safetensors.torch
import torch
from safetensors import SafetensorError

from afm_dist import storage
from afm_dist.errors import DataError
from afm_dist.statistics.moments import Moments

FORMAT_VERSION = "1"


def digest_of(moments: Mapping[str, Moments]) -> str:
    """SHA-256 of the names and exact bits of several moments."""
    text = json.dumps([[name, item.digest()] for name, item in sorted(moments.items())])
    return hashlib.sha256(text.encode()).hexdigest()


def save_moments(location: str, moments: Mapping[str, Moments], *, fingerprint: str = "") -> str:
    """Write moments by layer name; returns their digest.

    Args:
        location: The file to write.
        moments: By layer or field name.
        fingerprint: What they were computed from; readers may insist on it.
    """
    digest = digest_of(moments)
    tensors = {}
    for name, item in moments.items():
        tensors[f"{name}/mean"] = item.mean.contiguous()
        tensors[f"{name}/scatter"] = item.scatter.contiguous()
    metadata = {
        "format_version": FORMAT_VERSION,
        "counts": json.dumps({name: item.count for name, item in moments.items()}),
        "weights": json.dumps({k: item.weight for k, item in moments.items() if item.weight is not None}),
        "digest": digest,
        "fingerprint": fingerprint,
    }
    storage.write_bytes(location, safetensors.torch.save(tensors, metadata))
    return digest


def load_moments(location: str, *, fingerprint: str | None = None) -> dict[str, Moments]:
    """Read moments back.

    Args:
        location: The file.
        fingerprint: When given, what the moments must have been computed from.

    Raises:
        DataError: no such file, damaged, of an unknown version, or computed from something else.
    """
    content = storage.read_bytes(location)
    try:
        metadata = _metadata(content)
        tensors: dict[str, torch.Tensor] = safetensors.torch.load(content)
        if metadata["format_version"] != FORMAT_VERSION:
            raise DataError(f"{location}: unknown format version {metadata['format_version']!r}")
        weights = json.loads(metadata["weights"])
        moments = {
            name: Moments(
                count=count,
                mean=tensors[f"{name}/mean"],
                scatter=tensors[f"{name}/scatter"],
                weight=weights.get(name),
            )
            for name, count in json.loads(metadata["counts"]).items()
        }
        recorded = metadata["digest"], metadata["fingerprint"]
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{location}: damaged moments file ({error}); delete it and run again") from error
    if digest_of(moments) != recorded[0]:
        raise DataError(f"{location}: checksum does not match; delete it and run again")
    if fingerprint is not None and recorded[1] != fingerprint:
        raise DataError(f"{location}: computed from other inputs; delete it and run again")
    return moments


def _metadata(content: bytes) -> dict[str, str]:
    """The metadata of a safetensors file: the header is length (8 bytes) and JSON."""
    length = int.from_bytes(content[:8], "little")
    if length > len(content) - 8:
        raise ValueError("truncated header")
    metadata = json.loads(content[8 : 8 + length])["__metadata__"]
    if not isinstance(metadata, dict):
        raise TypeError("no metadata")
    return {str(key): str(value) for key, value in metadata.items()}
