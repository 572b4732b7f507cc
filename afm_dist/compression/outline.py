"""The shapes of some of a model's modules, from which the bytes of their replacements follow."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from afm_dist.compression.plan import Plan, PlanEntry
from afm_dist.compression.rewrite import restructure_, stored_bytes
from afm_dist.errors import OptionError


class Outline:
    """Some modules of a model without their numbers, and what it declares that they fold into or absorb.

    Args:
        model: Is not kept.
        names: Modules that can be compressed.

    Attributes:
        targets: These modules, by name, on the meta device; without those that cannot be copied.
        bytes: Of all tensors of the whole model, each counted once.
    """

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        self._declared = {key: dict(getattr(model, key, {})) for key in ("folds", "absorbs")}
        others = [value for declared in self._declared.values() for value in declared.values()]
        known = dict(model.named_modules())
        wanted = [name for name in dict.fromkeys([*names, *others]) if name in known]
        copies = {name: _empty(known[name]) for name in wanted}
        self._modules = {name: module for name, module in copies.items() if module is not None}
        self.targets = {name: self._modules[name] for name in names if name in self._modules}
        self.bytes = sum(_distinct(model).values())

    def __call__(self, entry: PlanEntry) -> tuple[int, int] | None:
        """Count the bytes of what an entry changes, stored, before and after; None: it does not fit."""
        names = [entry.name, *entry.config.neighbours]
        if not all(name in self._modules for name in names):
            return None
        part = nn.Module()
        for key, declared in self._declared.items():
            setattr(part, key, declared)
        for name in names:
            _place(part, name, copy.deepcopy(self._modules[name]))
        before, plan = stored_bytes(part, Plan()), Plan(entries=(entry,))
        try:
            with torch.device("meta"):
                restructure_(part, plan)
            return before, stored_bytes(part, plan)
        except OptionError:
            return None


def _empty(module: nn.Module) -> nn.Module | None:
    """Copy to the meta device, without copying the numbers on the way; None: it cannot be copied."""
    memo: dict[int, Tensor] = {}
    for tensor in [*module.parameters(), *module.buffers()]:
        empty = torch.empty_like(tensor, device="meta")
        memo[id(tensor)] = (
            nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
        )
    try:
        return copy.deepcopy(module, memo)
    except Exception:  # whatever a type of one's own holds that cannot be copied
        return None


def _place(whole: nn.Module, name: str, module: nn.Module) -> None:
    *owners, last = name.split(".")
    for owner in owners:
        if owner not in whole._modules:
            whole.add_module(owner, nn.Module())
        whole = whole.get_submodule(owner)
    whole.add_module(last, module)


def _distinct(model: nn.Module) -> dict[object, int]:
    """Bytes of the tensors of a model's state, tied ones once."""
    tensors = [tensor for tensor in model.state_dict(keep_vars=True).values() if isinstance(tensor, Tensor)]
    return {id(tensor): 0 if is_lazy(tensor) else tensor.nbytes for tensor in tensors}
