"""What reports say of modules of low rank: spectra, ranks, kept variance, neighbours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from afm_dist.compression.facts import MethodFacts
from afm_dist.compression.look import Look
from afm_dist.compression.plan import PlanEntry
from afm_dist.methods.low_rank.absorb import in_agreeing_units
from afm_dist.methods.low_rank.config import LowRank
from afm_dist.methods.low_rank.factorizations import FACTORIZATIONS, ProjectedOutputs
from afm_dist.statistics.keys import field_name
from afm_dist.statistics.spectrum import eigendecompose, kept_share
from afm_dist.statistics.statistics import Statistics

SHARES = (0.9, 0.95, 0.99)
NEEDED = f"Components for {' / '.join(f'{100 * share:.0f}' for share in SHARES)}\N{NO-BREAK SPACE}% of"
NOTHING = "–"


def as_decomposed(config: LowRank, known: Statistics, key: str) -> Statistics:
    """Give the statistics that were decomposed: absorbed weights in the unit in which they count."""
    return known if config.absorbs is None else in_agreeing_units(known, [key])


def _needed(components: Mapping[str, int]) -> str:
    return " / ".join(str(components.get(str(share), NOTHING)) for share in SHARES)


class LowRankFacts(MethodFacts[LowRank]):
    """Spectra, ranks, and what became of the neighbours."""

    looks = {  # noqa: RUF012
        "afm": Look(label="AFM", colour="blue", marker="o"),
        "budget": Look(label="Weighted AFM, ranks for the bytes", colour="green", marker="P"),
        "svd": Look(label="SVD", colour="plum", marker="^"),
        "weighted": Look(label="Weighted AFM", colour="violet", marker="p"),
        "sequential": Look(label="AFM, layer after layer", colour="teal", marker="h"),
    }

    def kept_share(self, key: str, config: LowRank, known: Statistics) -> float | None:
        """Compute the share of the variance of some outputs that the factors keep.

        None for singular vectors, which are those of the weights: the spectrum of the outputs does not say.

        1 − tr((I − P)Σ(I − P)ᵀ)/tr Σ, with P the projection of the factors. P leaves scores that are not
        correlated, so its columns of ``decode``, of length 1, keep the variance of a score each.
        """
        if config.factors == "svd":
            return None
        known = as_decomposed(config, known, key)
        factors, own, rank = FACTORIZATIONS[config.factors], known[key], config.rank_of(field_name(key))
        if config.factors == "afm" or not isinstance(factors, ProjectedOutputs):
            return eigendecompose(own).kept_energy(rank)
        whole = factors.projection(key, own.width, own.width, known)
        return kept_share(whole.deviations.square(), rank)

    def layer(self, key: str, config: LowRank, known: Statistics) -> dict[str, Any]:
        """Describe the spectrum and the rank; of singular vectors, which have another spectrum, nothing."""
        if config.factors == "svd":
            return {}
        spectrum = eigendecompose(as_decomposed(config, known, key)[key])
        return {
            "rank": config.rank_of(field_name(key)),
            "kept_energy": self.kept_share(key, config, known),
            "components": {str(share): spectrum.rank_for_energy(share) for share in SHARES},
            "components_singular": {str(share): spectrum.rank_for_singular_values(share) for share in SHARES},
            "rank_deficiency": spectrum.rank_deficiency,
            "rank_needed": spectrum.needed_rank,
            "activation": config.activation if field_name(key) is None else None,
            "eigenvalues": spectrum.eigenvalues.tolist(),
        }

    def columns(self, layer: Mapping[str, Any]) -> Mapping[str, str | int | float]:
        """Show the rank, what it keeps, and the ranks that would keep certain shares."""
        if "rank" not in layer:
            return super().columns(layer)
        return {
            "Activation": layer.get("activation") or NOTHING,
            "Rank": layer["rank"],
            "Variance kept": layer["kept_energy"],
            f"{NEEDED} variance": _needed(layer.get("components", {})),
            f"{NEEDED} singular values": _needed(layer.get("components_singular", {})),
            "Rank deficiency": layer.get("rank_deficiency", NOTHING),
        }

    def counted_with(self, config: LowRank) -> Sequence[str]:
        """Name the first-order term that a table takes in."""
        return () if config.absorbs is None else (config.absorbs,)

    def notes(self, entries: Sequence[PlanEntry]) -> list[str]:
        """Say what became of fields with ranks of their own, and of absorbed first-order weights."""
        own = [(entry.name, entry.config) for entry in entries if isinstance(entry.config, LowRank)]
        by_field = [
            f"The fields have ranks of their own: {name} {config.in_words}. Fields of one rank are "
            "looked up together; of a field of rank 0 there are no rows, every id has the field's mean."
            for name, config in own
            if config.ranks is not None
        ]
        absorbed = [
            f"The first-order weights of the ids ({config.absorbs}) are no table any more: they are one more "
            f"coordinate of the rows that were decomposed, and follow from the codes of {name}. The bytes "
            "and the variance of each field are those of both together, a first-order weight counting as "
            "much as the logit depends on it beside an embedding's coordinate."
            for name, config in own
            if config.absorbs is not None
        ]
        return by_field + absorbed
