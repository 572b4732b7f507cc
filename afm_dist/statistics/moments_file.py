"""Moments on disk: one safetensors file with a checksum of its tensors inside."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import NotRequired, TypedDict

import safetensors.torch
import torch
from safetensors import SafetensorError

from afm_dist import storage
from afm_dist.errors import DataError
from afm_dist.statistics.moments import Moments

FORMAT_VERSION = "1"
FIX = "delete it and run again"


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
        metadata = read_metadata(content, location)
        tensors: dict[str, torch.Tensor] = safetensors.torch.load(content)
        if metadata["format_version"] != FORMAT_VERSION:
            raise DataError(f"{location}: unknown format version {metadata['format_version']!r}")
        counts = storage.parse_json(metadata["counts"].encode(), dict[str, int], source=location, fix=FIX)
        weights = storage.parse_json(metadata["weights"].encode(), dict[str, float], source=location, fix=FIX)
        moments = {
            name: Moments(
                count=count,
                mean=tensors[f"{name}/mean"],
                scatter=tensors[f"{name}/scatter"],
                weight=weights.get(name),
            )
            for name, count in counts.items()
        }
        recorded = metadata["digest"], metadata["fingerprint"]
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{location}: damaged moments file ({error}); {FIX}") from error
    if digest_of(moments) != recorded[0]:
        raise DataError(f"{location}: checksum does not match; {FIX}")
    if fingerprint is not None and recorded[1] != fingerprint:
        raise DataError(f"{location}: computed from other inputs; {FIX}")
    return moments


class _Header(TypedDict):
    """What is read of the header of a safetensors file."""

    __metadata__: NotRequired[dict[str, str]]


def read_metadata(content: bytes, location: str) -> dict[str, str]:
    """Read the metadata of a safetensors file, if it has any: the header is length (8 bytes) and JSON.

    Args:
        content: Of the file.
        location: Of the file, for messages.

    Raises:
        ValueError: there is no such header.
        DataError: it is damaged.
    """
    length = int.from_bytes(content[:8], "little")
    if length > len(content) - 8:
        raise ValueError("truncated header")
    header = storage.parse_json(content[8 : 8 + length], _Header, source=location, fix=FIX)
    return header.get("__metadata__", {})
