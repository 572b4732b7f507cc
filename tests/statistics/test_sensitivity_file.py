from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from afm_dist.errors import DataError
from afm_dist.statistics.sensitivity_file import load_sensitivity, save_sensitivity


def some_sensitivity() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(width, width, generator=generator, dtype=torch.float64)
        for name, width in [("mlp.3", 2), ("embedding[site]", 1), ("embedding[ad]", 1)]
    }


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "sensitivity.safetensors"
    save_sensitivity(str(path), some_sensitivity())
    return path


def test_every_bit_comes_back(saved: Path) -> None:
    loaded, written = load_sensitivity(str(saved)), some_sensitivity()

    assert loaded.keys() == written.keys()
    assert all(torch.equal(loaded[name], written[name]) for name in written)


def test_a_flipped_bit_is_refused_by_name_or_changes_nothing(saved: Path) -> None:
    content, written = saved.read_bytes(), some_sensitivity()
    for position in range(len(content)):
        damaged = bytearray(content)
        damaged[position] ^= 1 << (position % 8)
        saved.write_bytes(damaged)

        try:
            loaded = load_sensitivity(str(saved))
        except DataError as error:
            assert "sensitivity.safetensors: " in str(error)
        else:
            # The key of the digest, or the space behind the header.
            assert loaded.keys() == written.keys()
            assert all(torch.equal(loaded[name], written[name]) for name in written)


def test_values_of_another_run_under_the_digest_of_this_one_are_refused(saved: Path) -> None:
    length = int.from_bytes(saved.read_bytes()[:8], "little")
    save_sensitivity(str(saved.with_name("other")), {k: 2 * v for k, v in some_sensitivity().items()})
    other = saved.with_name("other").read_bytes()

    saved.write_bytes(saved.read_bytes()[: 8 + length] + other[8 + length :])

    with pytest.raises(DataError, match=r"sensitivity\.safetensors: damaged .altered"):
        load_sensitivity(str(saved))


def test_a_file_of_an_older_release_is_read(saved: Path) -> None:
    safetensors.torch.save_file(some_sensitivity(), saved)

    assert load_sensitivity(str(saved)).keys() == some_sensitivity().keys()
