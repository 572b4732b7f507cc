"""How much a model's logit depends on the outputs of its modules, to first order.

An error δy of an output changes the logit by about gᵀδy, with g = ∂logit/∂y. So E[ggᵀ] tells what an
error costs, in the same unit for every module: squared logits.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.utils._pytree import TreeSpec, tree_flatten, tree_map_only, tree_unflatten

from afm_dist.dataset.batch import Batch
from afm_dist.errors import OptionError
from afm_dist.modules.eval_mode import eval_mode
from afm_dist.statistics.moments import one_thread
from afm_dist.statistics.outputs import Observation, outputs_of

# How many rows tell enough, and how many at a time.
SAMPLE_ROWS = 1 << 16
SAMPLE_BATCH = 1 << 12


@one_thread()
def output_sensitivity(
    model: nn.Module,
    batches: Iterable[Batch],
    names: Sequence[str],
    *,
    forward: Callable[[nn.Module, Batch], Tensor],
    absorbing: Collection[str] = (),
) -> dict[str, Tensor]:
    """E[ggᵀ] of the outputs of some modules over some rows, shape (M, M), float64.

    Of a module that is called several times for a logit, or at several positions, the sum over them.

    Args:
        model: Any module; runs in eval mode, is left as it was (see ``eval_mode``).
        batches: A sample of the rows.
        names: Modules, all of which take part in the logit.
        forward: Gives the logits (B,) of a batch.
        absorbing: Those of the modules, fused tables, that absorb a first-order term: the weight that it adds
            to the logit is their last output, with gradient 1, shape (T + 1, T + 1).

    Returns:
        By the names that the moments of the modules have.

    Raises:
        ValueError: no rows, or a module whose output the logit does not depend on.

    Notes:
        On one thread, so that neither the result nor the ranks that follow from it depend on how many cores
        a machine has.
    """
    total = SensitivityTerms()
    for terms in sensitivity_terms(model, batches, names, forward=forward, absorbing=absorbing):
        total.add(terms)
    for name in names:
        if name not in total.reached:
            raise ValueError(f"{name}: the logit does not depend on its output, or there were no rows")
    return total.mean()


@dataclass(kw_only=True)
class SensitivityTerms:
    """Sums over the rows of a batch, or of several.

    Attributes:
        logits: How many there were.
        products: Σ ggᵀ by the names of moments, shape (M, M), float64.
        reached: Modules whose outputs a logit depended on.
    """

    logits: int = 0
    products: dict[str, Tensor] = field(default_factory=dict)
    reached: set[str] = field(default_factory=set)

    def add(self, other: SensitivityTerms) -> None:
        """Add the terms of later rows; the order of adding decides the bits."""
        self.logits += other.logits
        for key, product in other.products.items():
            self.products[key] = self.products.get(key, 0) + product
        self.reached |= other.reached

    def mean(self) -> dict[str, Tensor]:
        """Give E[ggᵀ]."""
        return {key: product.cpu() / self.logits for key, product in self.products.items()}


def sensitivity_terms(
    model: nn.Module,
    batches: Iterable[Any],
    names: Sequence[str],
    *,
    forward: Callable[[nn.Module, Any], Tensor],
    absorbing: Collection[str] = (),
) -> Iterator[SensitivityTerms]:
    """Yield what ``output_sensitivity`` sums up; arguments as there.

    A module that is called several times for a batch gives as many terms, since the order of adding decides
    the bits.
    """
    modules = {name: model.get_submodule(name) for name in names}
    with eval_mode(model) as apart, _recording(modules) as calls:
        for batch in batches:
            calls.clear()
            with apart(), torch.enable_grad():
                scores = forward(model, batch)
            logits = scores.numel()
            # As many as now: where activations are recomputed backward calls modules again.
            recorded = tuple(calls)
            for call, gradients in zip(recorded, _gradients(scores, recorded), strict=True):
                reached = {call.name} if any(gradient is not None for gradient in gradients) else set()
                for seen in call.observe(modules[call.name], gradients):
                    own = seen.rows.double()
                    if call.name in absorbing:
                        own = torch.cat([own, own.new_ones(len(own), 1)], 1)
                    yield SensitivityTerms(products={seen.key: own.T @ own})
                yield SensitivityTerms(reached=reached)
            yield SensitivityTerms(logits=logits)


def giving_logits(forward_fn: Callable[[nn.Module, Any], Any]) -> Callable[[nn.Module, Any], Tensor]:
    """Give the same function, which refuses what are no logits.

    Args:
        forward_fn: Calls a model with a batch.

    Raises:
        OptionError: from the call, when it returns anything but a tensor of floating point.
    """

    def forward(model: nn.Module, batch: Any) -> Tensor:
        found = forward_fn(model, batch)
        if not isinstance(found, Tensor) or not found.is_floating_point():
            raise OptionError(
                f"the sensitivity needs logits, but the forward gave a {type(found).__name__}: let "
                "forward_fn return the logits, shape (B,); or name methods= that do not need the sensitivity"
            )
        return found

    return forward


@dataclass(frozen=True, kw_only=True)
class _Call:
    """A call of a module.

    Attributes:
        name: Of the module.
        args: What it was called with, as it was then.
        kwargs: The same.
        output: The leaves of what it returned.
        structure: How the leaves are arranged.
        edges: Where each leaf leaves the module in the graph of the logit; None for what has no gradient.
    """

    name: str
    args: Any
    kwargs: Any
    output: Sequence[Any]
    structure: TreeSpec
    edges: Sequence[GradientEdge | None]

    def observe(self, module: nn.Module, gradients: Sequence[Tensor | None]) -> Iterator[Observation]:
        """Read off the gradient what is read off an output; it has its shape."""
        leaves = [
            leaf if edge is None else torch.zeros_like(leaf) if gradient is None else gradient
            for leaf, edge, gradient in zip(self.output, self.edges, gradients, strict=True)
        ]
        shaped = tree_unflatten(leaves, self.structure)
        yield from outputs_of(module).observe(self.name, module, shaped, *self.args, **self.kwargs)


@contextmanager
def _recording(modules: Mapping[str, nn.Module]) -> Iterator[list[_Call]]:
    """Within this context the calls of some modules are recorded.

    The model goes on with a copy of what a module returned, and the gradient is that of the copy as it was
    then: whatever is done to it in place comes later in the graph. Where nothing before the output can be
    trained the graph begins with it.
    """
    calls: list[_Call] = []

    def recorder(name: str) -> Callable[..., Any]:
        def record(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
            del module
            leaves, structure = tree_flatten(output)
            # What is returned twice stays one tensor.
            copies: dict[int, Tensor] = {}
            with torch.enable_grad():
                for leaf in leaves:
                    if isinstance(leaf, Tensor) and leaf.is_floating_point():
                        source = leaf if leaf.requires_grad else leaf.detach().requires_grad_()
                        copies.setdefault(id(leaf), source.clone())
            call = _Call(
                name=name,
                args=tree_map_only(Tensor, _copy, args),
                kwargs=tree_map_only(Tensor, _copy, kwargs),
                output=leaves,
                structure=structure,
                edges=[
                    get_gradient_edge(copies[id(leaf)]) if id(leaf) in copies else None for leaf in leaves
                ],
            )
            calls.append(call)
            return tree_unflatten([copies.get(id(leaf), leaf) for leaf in leaves], structure)

        return record

    hooks = [
        module.register_forward_hook(recorder(name), with_kwargs=True) for name, module in modules.items()
    ]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().clone()


def _gradients(scores: Tensor, calls: Sequence[_Call]) -> Iterator[list[Tensor | None]]:
    """For each call the gradients of the summed logits with respect to the leaves of its output."""
    edges = [edge for call in calls for edge in call.edges if edge is not None]
    found: Iterator[Tensor | None] = iter([None] * len(edges))
    if edges and scores.requires_grad:
        found = iter(torch.autograd.grad(scores.sum(), edges, allow_unused=True))
    for call in calls:
        yield [None if edge is None else next(found) for edge in call.edges]
