"""The ways to store a field among which a budget chooses."""

from __future__ import annotations

from afm_dist.methods.quantization.fields import effective
from afm_dist.methods.quantization.spec import INT_BITS, MEAN, MOST_BITS, Spec

# One of each kind, of few bits.
EXAMPLES = ("int8", "int4-row", "int2", "vq2", "rq2x1", "pq2x2", "float16")
_WORDS = (
    MEAN,
    *(f"vq{bits}" for bits in range(1, MOST_BITS + 1)),
    *(f"rq2x{bits}" for bits in range(3, 9)),
    *(f"int{bits}" for bits in INT_BITS),
    "float16",
    "float32",
)
# The longest of them.
LONGEST = max(_WORDS, key=len)


def options(ids: int, width: int) -> list[Spec]:
    """List the ways to store a field that save something, and the one to leave it as it is.

    Args:
        ids: V.
        width: K.
    """
    found: dict[tuple[str, int], Spec] = {}
    for word in _WORDS:
        spec = Spec.parse(word)
        if effective(spec, ids, width) != spec:
            continue
        layout = spec.layout(spec.slots(ids), width)
        # More bits than a field has use for are the same as fewer.
        found.setdefault((layout.group, layout.slots), spec)
    return list(found.values())
