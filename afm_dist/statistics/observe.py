"""Watching modules: which ones, and which rows each contributes to its moments."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from afm_dist.compression.registry import compressible, handler_of
from afm_dist.errors import OptionError
from afm_dist.statistics.moments import MomentAccumulator, Moments

ForwardFn = Callable[[nn.Module, Any], Any]
Targets = Sequence[str | type[nn.Module]]


def forward_batch(model: nn.Module, batch: Any) -> Any:
    """How a model is called when no ``forward_fn`` is given: ``model(batch.ids, batch.numeric)``."""
    return model(batch.ids, batch.numeric)


def match_modules(model: nn.Module, targets: Targets) -> list[str]:
    """Names of the compressible modules that match a pattern (``mlp.*``) or a type.

    Raises:
        OptionError: a target matches nothing.
    """
    candidates = {name: module for name, module in model.named_modules() if compressible(module)}
    chosen: set[str] = set()
    for target in targets:
        if isinstance(target, str):
            matches = {name for name in candidates if fnmatchcase(name, target)}
        else:
            matches = {name for name, module in candidates.items() if isinstance(module, target)}
        if not matches:
            raise OptionError(
                f"target {target!r} matches no compressible module; there are: "
                f"{', '.join(candidates) or 'none'}"
            )
        chosen |= matches
    return [name for name in candidates if name in chosen]


class Observer:
    """Accumulates the moments of the outputs of some modules while they are called.

    Every call counts: a module used twice in a forward contributes both uses.
    """

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        self._modules = {name: model.get_submodule(name) for name in names}
        self._accumulators = {
            key: MomentAccumulator(width)
            for name, module in self._modules.items()
            for key, width in handler_of(name, module).widths(name, module).items()
        }

    @property
    def moments(self) -> dict[str, Moments]:
        """By module name, or ``module[field]`` for the fields of a fused table."""
        return {key: accumulator.moments for key, accumulator in self._accumulators.items()}

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

    def _hook(self, name: str) -> Callable[[nn.Module, Any, Any, Any], None]:
        handler = handler_of(name, self._modules[name])

        def record(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            for seen in handler.observe(name, module, output, *args, **kwargs):
                try:
                    self._accumulators[seen.key].update(seen.rows.detach())
                except ValueError as error:
                    raise ValueError(f"output of {seen.key}: {error}") from error

        return record
