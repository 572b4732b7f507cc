"""A plan from statistics, whatever it is chosen by."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from afm_dist.compression.config import MethodConfig
from afm_dist.compression.plan import Plan
from afm_dist.errors import OptionError
from afm_dist.library.budget import Budget, within
from afm_dist.methods.low_rank.ranks import Policy, plan_ranks
from afm_dist.statistics.statistics import Statistics


def plan(
    statistics: Statistics,
    search: Budget | Policy,
    *,
    methods: Sequence[MethodConfig] | None = None,
    model: nn.Module | None = None,
) -> Plan:
    """Plan what becomes of the modules that statistics were collected of. It makes none of them larger.

    Args:
        statistics: From ``collect_statistics``.
        search: ``Budget("100MB")`` or ``Budget(ratio=5)``: what loses least within so many bytes, by the
            sensitivity. Or ``FixedRank``, ``KeptEnergy``: ranks of low rank alone, see ``plan_ranks``.
        methods: With a budget, configs to choose among, but for what is chosen; None: all registered methods
            that predict their error.
        model: With a budget, the model of the statistics: methods whose choices follow from its values
            (quantised tables) are chosen among only where it is given.

    Returns:
        The plan; ``left_alone`` says which modules stay as they are, and why.

    Raises:
        OptionError: a budget that is not to be met or nothing to be planned; or ``methods`` without a budget.
    """
    if isinstance(search, Budget):
        return within(statistics, search, methods, model).plan
    if methods is not None:
        raise OptionError(f"methods are chosen among for a Budget; {type(search).__name__} plans low rank")
    return plan_ranks(statistics, search)
