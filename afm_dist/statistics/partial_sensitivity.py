"""Terms of the sensitivity in the partials of a pass, beside the moments.

Σ ggᵀ is a scatter about 0, so a term lies in a partial as moments of mean 0. The terms of a group stay
apart, but for those of the first: so the driver adds them up in the order, and to the bits, of one
process that reads the whole sample.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch

from afm_dist.statistics.moments import Moments
from afm_dist.statistics.sensitivity import SensitivityTerms

PREFIX = "[sensitivity] "
_LOGITS, _REACHED, _TERM = f"{PREFIX}logits", f"{PREFIX}reached ", f"{PREFIX}term "


def as_moments(terms: Iterable[SensitivityTerms], *, joined: bool) -> dict[str, Moments]:
    """Give the terms of a group as moments.

    Args:
        terms: In their order.
        joined: Whether to add them up, which only the first group with terms may.
    """
    found: dict[str, Moments] = {}
    total = SensitivityTerms()
    number = 0
    for term in terms:
        if joined:
            total.add(term)
            continue
        total.add(SensitivityTerms(logits=term.logits, reached=term.reached))
        for key, product in term.products.items():
            found[f"{_TERM}{number:08d} {key}"] = _about_zero(product)
            number += 1
    for key, product in total.products.items():
        found[f"{_TERM}{0:08d} {key}"] = _about_zero(product)
    found[_LOGITS] = _about_zero(torch.empty(0, 0), total.logits)
    found |= {f"{_REACHED}{name}": _about_zero(torch.empty(0, 0)) for name in total.reached}
    return found


def split(part: Mapping[str, Moments]) -> tuple[dict[str, Moments], Iterator[SensitivityTerms]]:
    """Tell the moments of a partial from the terms, which come in their order."""
    return {key: own for key, own in part.items() if not key.startswith(PREFIX)}, _terms(part)


def _terms(part: Mapping[str, Moments]) -> Iterator[SensitivityTerms]:
    for key in sorted(part):
        if key.startswith(_TERM):
            _, _, name = key.removeprefix(_TERM).partition(" ")
            yield SensitivityTerms(products={name: part[key].scatter})
        elif key.startswith(_REACHED):
            yield SensitivityTerms(reached={key.removeprefix(_REACHED)})
        elif key == _LOGITS:
            yield SensitivityTerms(logits=part[key].count)


def _about_zero(product: torch.Tensor, count: int = 0) -> Moments:
    product = product.detach().cpu().double()
    return Moments(count=count, mean=torch.zeros(len(product), dtype=torch.float64), scatter=product)
