"""Watching modules: which ones, and which rows each contributes to its moments."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from afm_dist.compression.ranks import field_key
from afm_dist.compression.rewrite import compressible
from afm_dist.embedding import FusedEmbedding
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


def _widths(name: str, module: nn.Module) -> Mapping[str, int]:
    if isinstance(module, FusedEmbedding):
        return {field_key(name, field): module.dim for field in module.names}
    if isinstance(module, nn.Embedding):
        return {name: module.embedding_dim}
    assert isinstance(module, nn.Linear)
    return {name: module.out_features}


def _rows(name: str, module: nn.Module, output: Any) -> Iterator[tuple[str, Tensor]]:
    """The rows of one call of a module, by the name of the moments they belong to.

    Embeddings are narrow: in float64 they cost little and agree with the counts to 1e-9.
    """
    if isinstance(module, FusedEmbedding):
        _, vectors = output
        for i, field in enumerate(module.names):
            yield field_key(name, field), vectors[:, i].double()
    elif isinstance(module, nn.Embedding):
        yield name, output.reshape(-1, output.shape[-1]).double()
    else:
        yield name, output.reshape(-1, output.shape[-1])


class Observer:
    """Accumulates the moments of the outputs of some modules while they are called.

    Every call counts: a module used twice in a forward contributes both uses.
    """

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        self._modules = {name: model.get_submodule(name) for name in names}
        self._accumulators = {
            key: MomentAccumulator(width)
            for name, module in self._modules.items()
            for key, width in _widths(name, module).items()
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
        hooks = [module.register_forward_hook(self._hook(name)) for name, module in self._modules.items()]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _hook(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        def record(module: nn.Module, inputs: Any, output: Any) -> None:
            del inputs
            for key, rows in _rows(name, module, output):
                try:
                    self._accumulators[key].update(rows.detach())
                except ValueError as error:
                    raise ValueError(f"output of {key}: {error}") from error

        return record
