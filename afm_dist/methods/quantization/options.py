"""The ways to store a field among which a budget chooses."""

from __future__ import annotations

from collections.abc import Sequence

from afm_dist.methods.quantization.spec import INT_BITS, MOST_BITS, Spec, Way

# One of each kind, of few bits.
EXAMPLES = ("int8", "int4-row", "int2", "vq2", "rq2x1", "pq2x2", "float16", "vq2:3+mean", "vq1@2")
_WORDS = (
    "mean",
    *(f"vq{bits}" for bits in range(1, MOST_BITS + 1)),
    *(f"rq2x{bits}" for bits in range(3, 9)),
    *(f"int{bits}" for bits in INT_BITS),
    "float16",
    "float32",
)
# Of the ids before a border, and of those behind it.
_HEADS = ("vq4", "vq6", "vq8", "rq2x4", "rq2x6", "rq2x8", "int8")
_TAILS = ("mean", "vq1", "vq2", "vq3", "vq4")
# The borders are such parts of a field's ids, where so many are left before them.
_PARTS = (4, 16, 64)
_LEAST_HEAD = 32
# A word that is as long as any of these.
LONGEST = "rq2x8:1000000000+mean"


def options(ids: int, width: int) -> list[Spec]:
    """List the ways to store a field as a whole that save something, and the one to leave it as it is.

    Args:
        ids: V.
        width: K.
    """
    return _different([Spec.parse(word) for word in _WORDS], ids, width)


def tiers(ids: int, width: int) -> dict[int, tuple[list[Way], list[Way]]]:
    """List ways for the first ids of a field and for the others, by the number of the first.

    Args:
        ids: V.
        width: K.
    """
    found = {}
    for part in _PARTS:
        if (end := ids // part) < _LEAST_HEAD:
            break
        head, tail = (
            [spec.ways[0] for spec in _different([Spec.parse(word) for word in words], rows, width)]
            for words, rows in ((_HEADS, end), (_TAILS, ids - end))
        )
        found[end] = head, tail
    return found


def _different(specs: Sequence[Spec], ids: int, width: int) -> list[Spec]:
    """Leave out what saves nothing; more bits than a field has use for are the same as fewer."""
    found: dict[str, Spec] = {}
    for spec in specs:
        if spec.effective(ids, width) == spec:
            found.setdefault(spec.layouts(ids, width)[0].group, spec)
    return list(found.values())
