"""Which rank where: policies from the spectra to a plan."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace

from afm_dist.compression.factorize import Spectrum, eigendecompose
from afm_dist.compression.plan import DEFAULT_KAPPA, Activation, Method, Plan, PlanEntry
from afm_dist.errors import OptionError
from afm_dist.statistics.collected import CollectedMoments
from afm_dist.statistics.moments import Moments

# Of one rank, so that a line stays one.
NAMED_FIELDS = 4
# By module, of a table perhaps one for each field; None leaves a module as it is.
Ranks = Mapping[str, int | Mapping[str, int] | None]


@dataclass(frozen=True, kw_only=True)
class FixedRank:
    """The same rank everywhere, as in the paper."""

    rank: int

    def choose(self, name: str, spectrum: Spectrum) -> int:
        """The rank of one module.

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
        """The rank of one module."""
        del name
        return spectrum.rank_for_energy(self.share)


@dataclass(frozen=True, kw_only=True)
class GivenRanks:
    """A rank for each module, or one for each of its fields; None leaves a module as it is."""

    ranks: Ranks

    def choose(self, name: str, spectrum: Spectrum) -> int | None:
        """The rank of one module, or of a field.

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
    method: Method = "afm",
    activation: Activation = "none",
    kappa: float = DEFAULT_KAPPA,
    folded_into: str | None = None,
    absorbs: str | None = None,
) -> Plan:
    """A plan for the modules whose moments were collected. It makes none of them larger.

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
    entries = [
        PlanEntry(
            name=name,
            method=method,
            rank=1,
            activation=activation,
            kappa=kappa,
            folded_into=folded_into,
            absorbs=absorbs,
        ).with_rank(rank)
        for name, rank in ranks.items()
    ]
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
    """Why an entry would make nothing smaller; None if it does, or that is not known."""
    if entry.ranks is None and entry.rank > width:
        return f"rank {entry.rank} of {width} outputs"
    bytes_of = moments.bytes_of if isinstance(moments, CollectedMoments) else None
    found = None if bytes_of is None else bytes_of(entry)
    if found is None or found[1] < found[0]:
        return None
    before, after = found
    return f"rank {entry.rank}: {after:,} bytes instead of {before:,}"


def plan_of(plan: Plan, ranks: Ranks) -> Plan:
    """The same with these ranks, without the entries of what stays as it is."""
    given = [(entry, ranks[entry.name]) for entry in plan.entries]
    return replace(plan, entries=tuple(entry.with_rank(rank) for entry, rank in given if rank is not None))


def in_words(ranks: Ranks) -> str:
    """``mlp.3 to 64, embedding by field (0 for depth; 2 for 11 fields)``."""
    return ", ".join(f"{name} {_in_words(rank)}" for name, rank in ranks.items())


def _in_words(rank: int | Mapping[str, int] | None) -> str:
    if rank is None:
        return "as it is"
    if isinstance(rank, int):
        return f"to {rank}"
    fields: dict[int, list[str]] = {}
    for field, own in rank.items():
        fields.setdefault(own, []).append(field)
    listed = (
        f"{own} for {', '.join(names) if len(names) <= NAMED_FIELDS else f'{len(names)} fields'}"
        for own, names in sorted(fields.items())
    )
    return f"by field ({'; '.join(listed)})"


def module_key(module: str) -> str:
    """The name of the moments of a whole module: its own name, ``[`` written ``\\[``."""
    return re.sub(r"[\\[]", r"\\\g<0>", module)


def field_key(module: str, field: str) -> str:
    """The name of the moments of one field of a fused table: ``module[field]``."""
    return f"{module_key(module)}[{field}]"


def module_name(key: str) -> str:
    """The module that some moments belong to: the inverse of ``module_key`` and ``field_key``."""
    module = re.match(r"(?:[^\\[]|\\.)*", key, re.DOTALL)
    assert module is not None
    return re.sub(r"\\(.)", r"\1", module[0], flags=re.DOTALL)


def field_name(key: str) -> str | None:
    """The field that some moments belong to: the inverse of ``field_key``; None: a whole module."""
    module = module_key(module_name(key))
    return None if key == module else key[len(module) + 1 : -1]
