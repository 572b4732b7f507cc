"""Codes of 1 to 12 bits, packed: n codes of b bits take b·n bits, rounded up to bytes a plane.

A code is cut into planes whose widths divide a byte, widest first, the low bits in the first: 6 bits are a
plane of 4 and one of 2. So a code is read by one byte a plane, and never lies across two.
"""

from __future__ import annotations

import torch
from torch import Tensor


def plane_widths(bits: int) -> tuple[int, ...]:
    """Give the bits of each plane, widest first: 12 are (8, 4), 7 are (4, 2, 1), 0 are none."""
    return tuple(width for width in (8, 4, 2, 1) if bits & width)


def plane_bytes(count: int, width: int) -> int:
    """Count the bytes of a plane of so many codes."""
    return -(-count * width // 8)


def packed_bytes(count: int, bits: int) -> int:
    """Count the bytes of so many packed codes."""
    return sum(plane_bytes(count, width) for width in plane_widths(bits))


def pack(codes: Tensor, bits: int) -> Tensor:
    """Pack codes (n,), integers below 2^bits, to bytes, plane behind plane, uint8.

    Raises:
        ValueError: a code that does not fit.
    """
    if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < 1 << bits:
        raise ValueError(f"codes from {int(codes.min())} to {int(codes.max())} do not fit in {bits} bits")
    planes, shift = [], 0
    for width in plane_widths(bits):
        values = (codes >> shift) & ((1 << width) - 1)
        each = 8 // width
        padded = values.new_zeros(plane_bytes(len(codes), width) * each)
        padded[: len(codes)] = values
        places = torch.arange(each, device=codes.device) * width
        planes.append((padded.view(-1, each) << places).sum(1).to(torch.uint8))
        shift += width
    return torch.cat(planes) if planes else torch.zeros(0, dtype=torch.uint8, device=codes.device)


def unpack(planes: Tensor, count: int, bits: int) -> Tensor:
    """Unpack so many codes of the bytes that ``pack`` gave, shape (count,), int64."""
    codes = torch.zeros(count, dtype=torch.int64, device=planes.device)
    start, shift = 0, 0
    for width in plane_widths(bits):
        own = planes[start : start + plane_bytes(count, width)].long()
        places = torch.arange(8 // width, device=planes.device) * width
        values = (own[:, None] >> places) & ((1 << width) - 1)
        codes |= values.flatten()[:count] << shift
        start, shift = start + len(own), shift + width
    return codes
