"""Trying a rewritten model on a batch: is every replacement called, and no original used any more?"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from afm_dist.compression.plan import Plan, PlanEntry
from afm_dist.compression.registry import method_for
from afm_dist.errors import OptionError
from afm_dist.modules.eval_mode import eval_mode
from afm_dist.runtime import console
from afm_dist.statistics.collected import Probe


@contextmanager
def trial(model: nn.Module, plan: Plan, probe: Probe | None) -> Iterator[None]:
    """Run a model before and after it is rewritten within this context.

    Args:
        model: To be rewritten.
        plan: What becomes of its modules.
        probe: Runs it on a batch; None: nothing is tried.

    Raises:
        OptionError: at the beginning, when the model writes into weights of a module that will be replaced;
            at the end, when the model no longer runs, uses weights of a module that was replaced, or does
            not call a replacement though it called the original.
    """
    known = dict(model.named_modules(remove_duplicate=False))
    # What an earlier entry makes cannot be watched before.
    names = [name for name in plan.modules if name in known]
    if probe is None or not names:
        yield
        return
    parameters = dict(model.named_parameters(remove_duplicate=False))
    replaced = [entry.name for entry in plan.entries if _is_replaced(entry, known)]
    uses = _Uses({_memory(own): name for name, own in parameters.items() if _is_part(name, replaced)})
    before: dict[str, int] | None = None
    try:
        before = _calls(model, names, probe, uses)
    except Exception as error:
        console.warn(
            "the model is not tried before and after compressing: it does not run on the batch of the "
            f"statistics ({type(error).__name__}: {error})"
        )
    if uses.written:
        raise OptionError(
            f"the model writes into {', '.join(uses.written)} in its forward, which what takes the place of "
            "the module would not follow, so nothing was changed; write before compressing, or leave it out "
            "of the plan"
        )
    yield
    if before is None:
        return
    kept = {_memory(tensor) for tensor in [*model.parameters(), *model.buffers()]}
    uses = _Uses({_memory(own): name for name, own in parameters.items() if _memory(own) not in kept})
    try:
        after = _calls(model, names, probe, uses)
    except Exception as error:
        raise OptionError(
            f"with {', '.join(names)} compressed the model does not run any more ({type(error).__name__}: "
            f"{error}), so nothing was changed; leave out of the plan what the model does more with than "
            "call it"
        ) from error
    if uses.found:
        raise OptionError(
            f"the model goes on using {', '.join(uses.found)} of modules that are compressed, by references "
            "that it keeps elsewhere, so nothing was changed; reach modules by the names under which they "
            "are registered, and weights by their modules, or leave them out of the plan"
        )
    idle = [name for name in names if before[name] and not after[name]]
    if idle:
        raise OptionError(
            f"the model calls {', '.join(idle)}, but not what takes their place, so nothing was changed; "
            "does it ask for their type? Leave them out of the plan, or ask for what they do"
        )


def _calls(model: nn.Module, names: Sequence[str], probe: Probe, uses: _Uses) -> dict[str, int]:
    """Return how often modules are called in a forward."""
    counts = dict.fromkeys(names, 0)

    def count(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            del module, args, output
            counts[name] += 1

        return hook

    hooks = [model.get_submodule(name).register_forward_hook(count(name)) for name in names]
    try:
        with eval_mode(model) as apart, torch.no_grad(), apart(), _eager(), uses:
            probe(model)
    finally:
        for hook in hooks:
            hook.remove()
    return counts


class _Uses(TorchDispatchMode):
    """Notes which tensors are used within this context, whatever is made of them first.

    Args:
        names: Of the tensors to look out for, by their memory.

    Attributes:
        found: Names of those that were used.
        written: Names of those that were changed in place.
    """

    def __init__(self, names: Mapping[int, str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._names = names
        self.found: dict[str, None] = {}
        self.written: dict[str, None] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Look at the arguments and go on."""
        del types
        for leaf in tree_leaves((args, kwargs)) if self._names else ():
            if isinstance(leaf, Tensor) and _memory(leaf) in self._names:
                self.found[self._names[_memory(leaf)]] = None
        for written in _written(func, args, kwargs or {}) if self._names else ():
            if _memory(written) in self._names:
                self.written[self._names[_memory(written)]] = None
        return func(*args, **(kwargs or {}))


def _written(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """List the arguments that an operator changes in place."""
    found: list[Tensor] = []
    for i, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[i] if i < len(args) else kwargs.get(argument.name)
            found += [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]
    return found


def _is_replaced(entry: PlanEntry, modules: Mapping[str, nn.Module]) -> bool:
    """Tell whether an entry puts something in the place of one of some modules."""
    method = method_for(entry.config, modules[entry.name]) if entry.name in modules else None
    return method is not None and method.replaces


def _is_part(parameter: str, modules: Sequence[str]) -> bool:
    """Tell whether a parameter belongs to one of some modules, by its name."""
    return any(parameter.startswith(f"{module}." if module else "") for module in modules)


def _memory(tensor: Tensor) -> int:
    """Where a tensor's numbers lie; of one without numbers, something that no other has."""
    if tensor.layout != torch.strided or tensor.is_meta or not tensor.numel():
        return -id(tensor)
    return tensor.untyped_storage().data_ptr()


def _eager() -> Any:
    """Run without compiled calls, which cannot be looked into."""
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()
