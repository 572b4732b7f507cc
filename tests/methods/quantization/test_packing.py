from __future__ import annotations

import pytest
import torch

from afm_dist.methods.quantization.packing import pack, packed_bytes, plane_widths, unpack


@pytest.mark.parametrize("bits", range(13))
@pytest.mark.parametrize("count", range(18))
def test_what_was_packed_is_unpacked(bits: int, count: int) -> None:
    codes = torch.randint(0, 1 << bits, (count,), generator=torch.Generator().manual_seed(count))

    packed = pack(codes, bits)

    assert packed.dtype == torch.uint8
    assert torch.equal(unpack(packed, count, bits), codes)


@pytest.mark.parametrize("bits", range(13))
def test_codes_take_their_bits_and_no_more_than_a_byte_a_plane_besides(bits: int) -> None:
    assert sum(plane_widths(bits)) == bits
    for count in (0, 1, 7, 8, 9, 1000, 1001):
        size = len(pack(torch.zeros(count, dtype=torch.int64), bits))
        assert size == packed_bytes(count, bits)
        assert bits * count <= 8 * size < bits * count + 8 * max(1, len(plane_widths(bits)))


def test_a_code_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="do not fit in 3 bits"):
        pack(torch.tensor([0, 8]), 3)
