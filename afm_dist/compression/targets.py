"""What an architecture declares of itself: which of its modules are compressed, and what reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from afm_dist.compression.plan import TABLE, Plan
from afm_dist.errors import OptionError


def target_linears(model: nn.Module) -> list[str]:
    """List the linear layers to compress, as the model declares them.

    Raises:
        OptionError: the model declares none (an MLP with a single hidden layer).
    """
    names: Sequence[str] = getattr(model, "compressible_linears", ())
    if not names:
        raise OptionError(
            f"{type(model).__name__} has no linear layers to compress: give it two or more hidden layers"
        )
    return list(names)


def folded_into(model: nn.Module) -> str | None:
    """Name the linear layer that reads the tables' embeddings, as the model declares."""
    folds: Mapping[str, str] = getattr(type(model), "folds", {})
    return folds.get(TABLE)


def first_order(model: nn.Module, chosen: str) -> str:
    """Name the first-order term over the fields of the table, as the model declares.

    Args:
        model: The model.
        chosen: Value of ``--linear-terms`` that needs it.

    Raises:
        OptionError: the model declares none.
    """
    declared: Mapping[str, str] = getattr(type(model), "absorbs", {})
    if TABLE not in declared:
        raise OptionError(
            f"--linear-terms {chosen}: {type(model).__name__} declares no first-order table over the fields "
            "of its embeddings; take --linear-terms keep"
        )
    return declared[TABLE]


def linears_of(plan: Plan) -> Plan:
    """Give what a plan does to the model without its table."""
    return Plan(entries=tuple(entry for entry in plan.entries if not _of_table(entry.name)))


def tables_of(plan: Plan) -> Plan:
    """Give what a plan does to the table, and to what earlier entries made of it."""
    return Plan(entries=tuple(entry for entry in plan.entries if _of_table(entry.name)))


def _of_table(name: str) -> bool:
    return name.partition(".")[0] == TABLE
