"""Watching modules: which ones, and which rows each contributes to its moments."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from afm_dist.compression.registry import has_method, refusals
from afm_dist.errors import OptionError
from afm_dist.runtime import console
from afm_dist.statistics.accumulator import MomentAccumulator, Workspace
from afm_dist.statistics.moments import Moments, moments_of_sums
from afm_dist.statistics.outputs import Observation, outputs_of

ForwardFn = Callable[[nn.Module, Any], Any]
Targets = Sequence[str | type[nn.Module]]


def forward_batch(model: nn.Module, batch: Any) -> Any:
    """How a model is called when no ``forward_fn`` is given: ``model(batch.ids, batch.numeric)``."""
    return model(batch.ids, batch.numeric)


def match_modules(model: nn.Module, targets: Targets) -> list[str]:
    """Names of the compressible modules that match a name, a pattern (``mlp.*``) or a type.

    What a pattern or a type matches but cannot be compressed is left out with a warning; a module
    that shares its weights with another one, for example, or a part of ``nn.MultiheadAttention``.

    Raises:
        OptionError: a target matches nothing, or names a module that cannot be compressed.
    """
    reasons = refusals(model)
    candidates = [name for name, reason in reasons.items() if reason is None]
    matched: set[str] = set()
    for target in targets:
        matches = _matches(model, target)
        if matches.isdisjoint(candidates):
            why = [f" ({name or 'the model'} {reasons[name]})" for name in sorted(matches)[:1]]
            raise OptionError(
                f"target {target!r} matches no compressible module{''.join(why)}; there are: "
                f"{', '.join(candidates) or 'none'}"
            )
        matched |= matches
    for name, reason in reasons.items():
        if name in matched and reason is not None and has_method(model.get_submodule(name)):
            console.warn(f"left out of the statistics: {name} {reason}")
    return [name for name in candidates if name in matched]


def _matches(model: nn.Module, target: str | type[nn.Module]) -> set[str]:
    """Names of the modules that match, each by the first of its names."""
    modules = dict(model.named_modules(remove_duplicate=False))
    first = {module: name for name, module in model.named_modules()}
    if isinstance(target, type):
        return {first[module] for module in modules.values() if isinstance(module, target)}
    if target in modules:
        return {first[modules[target]]}
    return {first[module] for name, module in modules.items() if name and fnmatchcase(name, target)}


class Observer:
    """Accumulates the moments of the outputs of some modules while they are called.

    Every call counts: a module used twice in a forward contributes both uses.
    """

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        self._modules = {name: model.get_submodule(name) for name in names}
        workspace = Workspace()
        self._accumulators = {
            key: MomentAccumulator(width, workspace)
            for name, module in self._modules.items()
            for key, width in outputs_of(module).widths(name, module).items()
        }
        self._sums: dict[str, Moments] = {}

    @property
    def moments(self) -> dict[str, Moments]:
        """By module name, or ``module[field]`` for the fields of a fused table."""
        return {key: accumulator.moments for key, accumulator in self._accumulators.items()} | self._sums

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Within this context calls of the modules are recorded.

        Raises:
            ValueError: from the call itself, when an output holds NaN or infinity; names the module.
        """
        hooks = [
            module.register_forward_hook(self._hook(name), with_kwargs=True)
            for name, module in self._modules.items()
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _add(self, seen: Observation) -> None:
        rows = seen.rows.detach()
        if seen.weights is None:
            self._accumulators[seen.key].update(rows)
        else:
            sums = moments_of_sums(rows, seen.weights.detach())
            self._sums[seen.key] = self._sums[seen.key].merge(sums) if seen.key in self._sums else sums

    def _hook(self, name: str) -> Callable[[nn.Module, Any, Any, Any], None]:
        outputs = outputs_of(self._modules[name])

        def record(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            for seen in outputs.observe(name, module, output, *args, **kwargs):
                try:
                    self._add(seen)
                except ValueError as error:
                    raise ValueError(f"output of {seen.key}: {error}") from error

        return record
