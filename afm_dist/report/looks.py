"""How each model is shown: label, colour and marker, as its method says."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from zlib import crc32

from afm_dist.compression.look import Colour, Look
from afm_dist.report.view import Span

UNCOMPRESSED = {
    "baseline": Look(label="Uncompressed", colour="grey", marker="s"),
    "control": Look(label="Uncompressed", colour="amber", marker="D"),
}
SCRATCH = {"scratch": Look(label="Small model from scratch", colour="rust", marker="X")}
# What compresses is drawn in this order: before, after.
BEFORE, AFTER = "grey", "blue"
NEUTRAL: tuple[Colour, ...] = ("green", "violet", "teal", "plum")
"""Of methods that say nothing of their looks."""


def known() -> Mapping[str, Look]:
    """Give all looks by name, in the order in which reports list them."""
    from afm_dist.compression.registry import looks

    return {**UNCOMPRESSED, **looks(), **SCRATCH}


def method_of(name: str) -> str:
    """Tell how a model was made, by the name of its row: ``afm`` of ``afm-emb``."""
    return next(
        (one for one in sorted(known(), key=len, reverse=True) if f"{name}-".startswith(f"{one}-")),
        name.partition("-")[0],
    )


def look_of(name: str) -> Look:
    """Find how a model is shown, by the name of its row or by its method."""
    method = method_of(name)
    own = Look(label=method, colour=NEUTRAL[crc32(method.encode()) % len(NEUTRAL)], marker="P")
    return known().get(method, own)


def in_order(methods: Iterable[str]) -> list[str]:
    """Sort methods as reports list them, each once: the known ones first, others as they come."""
    places = list(known())
    return sorted(dict.fromkeys(methods), key=lambda one: places.index(one) if one in places else len(places))


def marked(name: str, *, badge: str = "") -> Span:
    """Make the name of a model or of a method, with the mark that stands for the method in every plot."""
    return Span(text=name, colour=look_of(name).colour, badge=badge)
