"""Which rank where: policies from the spectra to a plan."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from afm_dist.compression.plan import Plan, PlanEntry
from afm_dist.errors import OptionError
from afm_dist.methods.low_rank.config import DEFAULT_KAPPA, Activation, Factors, LowRank
from afm_dist.statistics.collected import BytesOf
from afm_dist.statistics.keys import field_name, module_name
from afm_dist.statistics.moments import Moments
from afm_dist.statistics.spectrum import Spectrum, eigendecompose

# By module, of a table perhaps one for each field; None leaves a module as it is.
Ranks = Mapping[str, int | Mapping[str, int] | None]


@dataclass(frozen=True, kw_only=True)
class FixedRank:
    """The same rank everywhere, as in the paper."""

    rank: int

    def choose(self, name: str, spectrum: Spectrum) -> int:
        """Choose the rank of one module.

        Raises:
            OptionError: less than 1.
        """
        if self.rank < 1:
            raise OptionError(
                f"rank {self.rank} for {name}: must lie in 1..{spectrum.width}, the layer's width"
            )
        return self.rank


@dataclass(frozen=True, kw_only=True)
class KeptEnergy:
    """The smallest rank that keeps this share of the variance (sum of eigenvalues)."""

    share: float

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise OptionError(f"energy {self.share}: a share of the variance lies in (0, 1]; try 0.99")

    def choose(self, name: str, spectrum: Spectrum) -> int:
        """Choose the rank of one module."""
        del name
        return spectrum.rank_for_energy(self.share)


@dataclass(frozen=True, kw_only=True)
class GivenRanks:
    """A rank for each module, or one for each of its fields; None leaves a module as it is."""

    ranks: Ranks

    def choose(self, name: str, spectrum: Spectrum) -> int | None:
        """Choose the rank of one module, or of a field.

        Raises:
            OptionError: there is none for it.
        """
        del spectrum
        module = module_name(name)
        if module not in self.ranks:
            raise OptionError(f"no rank is given for {module}; there are some for {', '.join(self.ranks)}")
        given = self.ranks[module]
        if not isinstance(given, Mapping):
            return given
        field = field_name(name)
        if field is None or field not in given:
            raise OptionError(f"no rank is given for {name}; there are some for {', '.join(given)}")
        return given[field]


Policy = FixedRank | KeptEnergy | GivenRanks


def plan_ranks(
    moments: Mapping[str, Moments],
    policy: Policy,
    *,
    method: Factors = "afm",
    activation: Activation = "none",
    kappa: float = DEFAULT_KAPPA,
    folded_into: str | None = None,
    absorbs: str | None = None,
) -> Plan:
    """Plan the modules whose moments were collected. It makes none of them larger.

    What would not become smaller is left as it is, with a warning, and is in the plan's ``left_alone``:
    layers that are narrower than the rank (heads, gates), and, of moments straight from ``collect_moments``,
    which know the shapes of the modules, also those whose factors, biases included, have as many bytes or
    more. There is a warning, too, where the rows are so few that they decide the rank.

    Moments of a field of a fused table are named ``module[field]``; such a table gets one entry, with the
    largest rank that the policy gives a field, or with the ranks that were given.

    Args:
        moments: By module name, from ``collect_moments``.
        policy: How a rank follows from a spectrum.
        method: Where the factors come from.
        activation: Between the factors of linear layers.
        kappa: Of the shifted ReLU.
        folded_into: Linear layer that reads a table's codes directly.
        absorbs: First-order term whose weights are the last coordinate of a table's moments.

    Raises:
        OptionError: a rank less than 1, or moments of no rows.
    """
    ranks: dict[str, int | dict[str, int]] = {}
    widths: dict[str, int] = {}
    few: list[str] = []
    for name, item in moments.items():
        if item.count == 0:
            raise OptionError(f"the moments of {name} hold no rows: the model was never called through it")
        spectrum = eigendecompose(item)
        if item.count <= spectrum.width and spectrum.width - spectrum.rank_deficiency >= item.count - 1:
            few.append(f"{name} ({item.count} rows of {spectrum.width} outputs)")
        widths[module_name(name)] = spectrum.width
        rank = policy.choose(name, spectrum)
        module, field = module_name(name), field_name(name)
        if rank is None:
            continue
        if field is None:
            ranks[module] = rank
        else:
            own = ranks.setdefault(module, {})
            assert isinstance(own, dict)
            own[field] = rank
    if not isinstance(policy, GivenRanks):
        ranks = {name: max(rank.values()) if isinstance(rank, dict) else rank for name, rank in ranks.items()}
    config = LowRank(
        factors=method, rank=1, activation=activation, kappa=kappa, folded_into=folded_into, absorbs=absorbs
    )
    entries = [PlanEntry(name, config.with_rank(rank)) for name, rank in ranks.items()]
    reasons = {entry.name: _why_left_alone(entry, widths[entry.name], moments) for entry in entries}
    left = {name: reason for name, reason in reasons.items() if reason is not None}
    if left:
        listed = "; ".join(f"{name} ({reason})" for name, reason in left.items())
        warnings.warn(f"left as they are, since they would not become smaller: {listed}", stacklevel=2)
    if few:
        warnings.warn(
            f"so few rows that they decide how many components there are: {', '.join(few)}; collect the "
            "moments of more",
            stacklevel=2,
        )
    return Plan(entries=tuple(entry for entry in entries if entry.name not in left), left_alone=left)


def _why_left_alone(entry: PlanEntry, width: int, moments: Mapping[str, Moments]) -> str | None:
    """Explain why an entry would make nothing smaller; None if it does, or that is not known."""
    config = low_rank(entry)
    if config.ranks is None and config.rank > width:
        return f"rank {config.rank} of {width} outputs"
    bytes_of: BytesOf | None = getattr(moments, "bytes_of", None)
    found = None if bytes_of is None else bytes_of(entry)
    if found is None or found[1] < found[0]:
        return None
    before, after = found
    return f"rank {config.rank}: {after:,} bytes instead of {before:,}"


def plan_of(plan: Plan, ranks: Ranks) -> Plan:
    """Give the same with these ranks, without the entries of what stays as it is."""
    given = [(entry.name, low_rank(entry), ranks[entry.name]) for entry in plan.entries]
    return Plan(
        entries=tuple(
            PlanEntry(name, config.with_rank(rank)) for name, config, rank in given if rank is not None
        )
    )


def using(plan: Plan, **changes: Any) -> Plan:
    """Give the same plan with some fields of every config replaced."""
    return Plan(
        entries=tuple(PlanEntry(entry.name, replace(low_rank(entry), **changes)) for entry in plan.entries)
    )


def low_rank(entry: PlanEntry) -> LowRank:
    """Give the config of an entry of low rank."""
    assert isinstance(entry.config, LowRank), entry
    return entry.config
