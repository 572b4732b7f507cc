"""Tensors where they lie in safetensors files, read block by block: nothing is mapped, so that what was
read does not count as resident memory, and files on object stores are read in the same way.

A safetensors file is the length of its header (8 bytes, little-endian), the header in JSON, and the
tensors one behind the other.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, BinaryIO, TypedDict

import torch
from torch import Tensor

from afm_dist import storage
from afm_dist.checkpoint.files import tensor_files
from afm_dist.dataset.manifest import Count
from afm_dist.errors import DataError

# In the order in which the safetensors library writes them.
DTYPES = {
    "U64": torch.uint64,
    "I64": torch.int64,
    "F64": torch.float64,
    "F32": torch.float32,
    "U32": torch.uint32,
    "I32": torch.int32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "U16": torch.uint16,
    "I16": torch.int16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
ORDER = list(NAMES)
LENGTH_BYTES = 8
PIECE_BYTES = 4 << 20
MAX_HEADER_BYTES = 100_000_000
METADATA = "__metadata__"


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """A tensor in a file.

    Attributes:
        location: Of the file.
        offset: Its first byte in the file.
        shape: Its shape.
        dtype: Its type.
    """

    location: str
    offset: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def row_bytes(self) -> int:
        """Of one entry along the first dimension."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    @property
    def nbytes(self) -> int:
        """Of the whole."""
        return math.prod(self.shape) * self.dtype.itemsize

    def blocks(self, start: int, stop: int, rows: int) -> Iterator[Tensor]:
        """Yield some rows, block by block; each block is overwritten by the next.

        Args:
            start: First row.
            stop: Behind the last row.
            rows: Of a block; the last one may have fewer.

        Raises:
            DataError: the file is gone or ends early.
        """
        block = torch.empty(min(rows, stop - start), *self.shape[1:], dtype=self.dtype)
        with storage.open_read(self.location) as file:
            file.seek(self.offset + start * self.row_bytes)
            for first in range(start, stop, rows):
                part = block[: stop - first]
                _fill(file, part, self.location)
                yield part

    def pieces(self) -> Iterator[memoryview]:
        """Yield the bytes of the whole, piece by piece; each is overwritten by the next.

        Raises:
            DataError: the file is gone or ends early.
        """
        flat = replace(self, shape=(self.nbytes,), dtype=torch.uint8)
        yield from map(as_bytes, flat.blocks(0, self.nbytes, PIECE_BYTES))

    def load(self) -> Tensor:
        """Read the whole tensor into memory."""
        tensor = torch.empty(self.shape, dtype=self.dtype)
        with storage.open_read(self.location) as file:
            file.seek(self.offset)
            _fill(file, tensor, self.location)
        return tensor


def as_bytes(tensor: Tensor) -> memoryview:
    """View the bytes of a contiguous tensor, in place."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def _fill(file: BinaryIO, tensor: Tensor, location: str) -> None:
    left = as_bytes(tensor)
    while len(left):
        read = file.readinto(left)  # type: ignore[attr-defined]
        if not read:
            raise DataError(f"{location}: ends early; it was truncated while it was read")
        left = left[read:]


def stored_tensors(checkpoint: str) -> dict[str, StoredTensor]:
    """All tensors of a checkpoint directory, by name.

    Raises:
        DataError: a file is missing or damaged.
    """
    tensors: dict[str, StoredTensor] = {}
    for location in tensor_files(checkpoint):
        tensors |= read_header(location)[0]
    return tensors


def read_header(location: str) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """List the tensors of a safetensors file, and its metadata.

    Raises:
        DataError: the file is missing, truncated or no safetensors file.
    """
    size = storage.size(location)
    try:
        with storage.open_read(location) as file:
            length = int.from_bytes(file.read(LENGTH_BYTES), "little")
            if length > min(MAX_HEADER_BYTES, size - LENGTH_BYTES):
                raise ValueError(f"its header claims {length} bytes of {size}")
            content = storage.parse_json(file.read(length), dict[str, Any], source=location)
        metadata = storage.as_typed(content.pop(METADATA, {}), dict[str, str], source=location)
        entries = storage.as_typed(content, dict[str, _Entry], source=location)
        first = LENGTH_BYTES + length
        tensors = {name: _stored(location, name, first, entry) for name, entry in entries.items()}
        end = first
        for tensor in sorted(tensors.values(), key=lambda each: (each.offset, each.nbytes)):
            if tensor.offset != end:
                raise ValueError("its tensors do not lie one behind the other")
            end += tensor.nbytes
        if end != size:
            raise ValueError(f"it has {size} bytes where its header promises {end}")
    except DataError:
        raise
    except ValueError as error:
        raise DataError(f"{location}: damaged ({error})") from error
    return tensors, metadata


class _Entry(TypedDict):
    """A tensor, in a header."""

    dtype: str
    shape: list[Count]
    data_offsets: tuple[Count, Count]


def _stored(location: str, name: str, first: int, entry: _Entry) -> StoredTensor:
    shape = tuple(entry["shape"])
    if entry["dtype"] not in DTYPES:
        raise ValueError(f"tensor {name} has the unknown type {entry['dtype']}")
    begin, end = entry["data_offsets"]
    tensor = StoredTensor(location=location, offset=first + begin, shape=shape, dtype=DTYPES[entry["dtype"]])
    if end - begin != tensor.nbytes:
        raise ValueError(f"tensor {name} of shape {shape} has {end - begin} bytes")
    return tensor


@dataclass(frozen=True, kw_only=True)
class Described:
    """A tensor that is to be written.

    Attributes:
        shape: Its shape.
        dtype: Its type.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Of the whole."""
        return math.prod(self.shape) * self.dtype.itemsize


def in_file_order(tensors: Mapping[str, Described]) -> list[str]:
    """Sort the names as a file holds them: in the order in which the safetensors library writes them."""
    return sorted(tensors, key=lambda name: (ORDER.index(tensors[name].dtype), name))


def header(tensors: Mapping[str, Described], metadata: Mapping[str, str] | None = None) -> bytes:
    """Make what comes before the tensors in their file."""
    content: dict[str, Any] = {METADATA: dict(metadata)} if metadata else {}
    end = 0
    for name in in_file_order(tensors):
        tensor = tensors[name]
        begin, end = end, end + tensor.nbytes
        content[name] = {
            "dtype": NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    return _framed(content)


def header_bytes_at_most(tensors: Mapping[str, Described], end: int) -> int:
    """Count the bytes before the tensors in their file, of tensors that lie anywhere before ``end``.

    Args:
        tensors: Of the largest shapes that they may have.
        end: The largest offset.
    """
    content = {
        name: {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [end, end]}
        for name, tensor in tensors.items()
    }
    return len(_framed(content))


def _framed(content: Mapping[str, Any]) -> bytes:
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % LENGTH_BYTES)
    return len(text).to_bytes(LENGTH_BYTES, "little") + text
