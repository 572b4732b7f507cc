from __future__ import annotations

import pytest

from afm_dist.errors import OptionError
from afm_dist.methods.quantization.spec import Spec

WORDS = [
    "float32",
    "float16",
    "int8",
    "int4-row",
    "int2",
    "vq1",
    "vq12",
    "rq2x8",
    "pq4x8",
    "mean",
    "vq4@50",
    "rq2x8:100+vq4:2000+mean",
    "int8:5+vq2@9",
]


@pytest.mark.parametrize("word", WORDS)
def test_words_go_round(word: str) -> None:
    assert Spec.parse(word).word == word


@pytest.mark.parametrize(
    "word",
    [
        "",
        "int3",
        "int16",
        "vq0",
        "vq13",
        "vq",
        "rq1x8",
        "rq17x2",
        "rq2x13",
        "pq2",
        "vq4+vq2",
        "vq4:0+vq2",
        "vq4:9+vq2:9+vq1",
        "vq4:9+",
        "+vq4",
        "vq4@0",
        "vq4@",
        8,
    ],
)
def test_other_words_are_refused_with_what_there_is(word: object) -> None:
    with pytest.raises(OptionError, match="is no way to store rows; choose from float32"):
        Spec.parse(word)


@pytest.mark.parametrize(
    ("word", "ids", "width", "size"),
    [
        # Packed codes, then levels of two bytes a number, then scales.
        ("int8", 100, 16, 100 * 16 + 2 * 2 * 16),
        ("int4", 101, 3, 152 + 2 * 2 * 3),
        ("int2-row", 100, 16, 400 + 2 * 16 + 2 * 100),
        ("vq4", 101, 16, 51 + 2 * 16 * 16),
        ("vq6", 101, 16, 51 + 26 + 2 * 64 * 16),
        ("rq2x4", 101, 16, 2 * 51 + 2 * 2 * 16 * 16),
        ("pq2x4", 101, 16, 2 * 51 + 2 * 16 * 16 + 16),
        ("vq8", 3, 16, 1 + 2 * 3 * 16),
        ("mean", 1000, 16, 2 * 16),
        ("vq4:100+mean", 5000, 16, 50 + 2 * 16 * 16 + 2 * 16),
        ("vq2:8+int8", 5, 16, 2 + 2 * 4 * 16),
        ("vq4@100", 5000, 16, 51 + 2 * 16 * 16),
        ("float16", 10, 3, 60),
    ],
)
def test_bytes_are_those_of_codes_levels_and_scales(word: str, ids: int, width: int, size: int) -> None:
    spec = Spec.parse(word)
    assert sum(layout.bytes for layout in spec.layouts(ids, width)) == size


def test_more_parts_than_coordinates_are_refused() -> None:
    with pytest.raises(OptionError, match="'pq4x8': 4 parts of rows of 3 numbers; at most 3"):
        Spec.parse("pq4x8").layouts(1000, 3)
