from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from afm_dist import storage
from afm_dist.errors import DataError
from afm_dist.statistics.moments import Moments
from afm_dist.statistics.moments_file import digest_of, load_moments, save_moments


def some_moments() -> dict[str, Moments]:
    generator = torch.Generator().manual_seed(0)
    return {
        name: Moments(
            count=10 * width,
            mean=torch.randn(width, generator=generator, dtype=torch.float64),
            scatter=torch.randn(width, width, generator=generator, dtype=torch.float64),
            weight=weight,
        )
        for name, width, weight in [("mlp.3", 2, None), ("embedding[site/ad]", 1, None), ("bag", 3, 0.1)]
    }


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "moments.safetensors"
    save_moments(str(path), some_moments(), fingerprint="inputs")
    return path


def test_every_bit_comes_back(saved: Path) -> None:
    loaded = load_moments(str(saved), fingerprint="inputs")

    assert {name: item.digest() for name, item in loaded.items()} == {
        name: item.digest() for name, item in some_moments().items()
    }


def test_the_weight_of_sums_is_part_of_the_digest() -> None:
    plain, *_, sums = some_moments().values()

    assert replace(sums, weight=0.2).digest() != sums.digest()
    assert replace(plain, weight=0.2).digest() != plain.digest()


def test_saving_returns_the_digest_of_the_content(tmp_path: Path) -> None:
    digest = save_moments(str(tmp_path / "m"), some_moments())

    assert digest == digest_of(load_moments(str(tmp_path / "m")))


def test_the_digest_does_not_depend_on_the_order_of_names() -> None:
    moments = some_moments()

    assert digest_of(dict(reversed(list(moments.items())))) == digest_of(moments)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.safetensors"):
        load_moments(str(tmp_path / "absent.safetensors"))


def test_a_file_cut_anywhere_is_refused_by_name(saved: Path) -> None:
    content = saved.read_bytes()
    for length in range(0, len(content), 7):
        saved.write_bytes(content[:length])

        with pytest.raises(DataError, match=r"moments\.safetensors"):
            load_moments(str(saved))


def test_a_flipped_bit_anywhere_is_refused_by_name(saved: Path) -> None:
    content = saved.read_bytes()
    for position in range(len(content)):
        damaged = bytearray(content)
        damaged[position] ^= 1 << (position % 8)
        saved.write_bytes(bytes(damaged))

        with pytest.raises(DataError, match=r"moments\.safetensors"):
            load_moments(str(saved), fingerprint="inputs")


def test_moments_of_other_inputs_are_refused(saved: Path) -> None:
    with pytest.raises(DataError, match=r"moments\.safetensors: computed from other inputs"):
        load_moments(str(saved), fingerprint="others")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04" + b"x" * 100, b'{"a": 1}', b"\x80\x04N."])
def test_a_foreign_file_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    storage.write_bytes(str(tmp_path / "foreign"), content)

    with pytest.raises(DataError, match="foreign"):
        load_moments(str(tmp_path / "foreign"))


def test_an_unknown_format_version_is_refused_by_name(saved: Path) -> None:
    content = saved.read_bytes()
    changed = content.replace(b'"format_version":"1"', b'"format_version":"7"')
    assert changed != content
    saved.write_bytes(changed)

    with pytest.raises(DataError, match="unknown format version '7'"):
        load_moments(str(saved))
