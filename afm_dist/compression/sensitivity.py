"""How much a model's logit depends on the outputs of its modules, to first order.

An error δy of an output changes the logit by about gᵀδy, with g = ∂logit/∂y. So E[ggᵀ] tells what an
error costs, in the same unit for every module: squared logits.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from afm_dist.compression.factorize import Projection
from afm_dist.compression.registry import handler_of
from afm_dist.dataset.batch import Batch
from afm_dist.statistics.moments import one_thread

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
        model: In eval mode; is not changed.
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
    modules = {name: model.get_submodule(name) for name in names}
    products: dict[str, Tensor] = {}
    reached: set[str] = set()
    logits = 0
    calls: list[tuple[str, Any, Any, Any]] = []

    def note(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            del module
            calls.append((name, output, args, kwargs))

        return hook

    hooks = [module.register_forward_hook(note(name), with_kwargs=True) for name, module in modules.items()]
    try:
        for batch in batches:
            calls.clear()
            with torch.enable_grad():
                scores = forward(model, batch)
            logits += scores.numel()
            tensors = [tensor for _, output, _, _ in calls for tensor in _parts(output)]
            if not tensors:
                break
            gradients = iter(torch.autograd.grad(scores.sum(), tensors, allow_unused=True))
            for name, output, args, kwargs in calls:
                found = [(tensor, next(gradients)) for tensor in _parts(output)]
                if any(gradient is not None for _, gradient in found):
                    reached.add(name)
                # What a handler reads off an output it reads off the gradient, which has its shape.
                parts = [torch.zeros_like(t) if gradient is None else gradient for t, gradient in found]
                shaped = tuple(parts) if isinstance(output, tuple) else parts[0]
                for seen in handler_of(modules[name]).observe(name, modules[name], shaped, *args, **kwargs):
                    own = seen.rows.double()
                    if name in absorbing:
                        own = torch.cat([own, own.new_ones(len(own), 1)], 1)
                    products[seen.key] = products.get(seen.key, 0) + own.T @ own
    finally:
        for hook in hooks:
            hook.remove()
    for name in names:
        if name not in reached:
            raise ValueError(f"{name}: the logit does not depend on its output, or there were no rows")
    return {key: product.cpu() / logits for key, product in products.items()}


def _parts(output: Any) -> tuple[Tensor, ...]:
    return output if isinstance(output, tuple) else (output,)


def tail_errors(projection: Projection, sensitivity: Tensor) -> Tensor:
    """What a rank costs: the error of keeping 0, 1, …, M components, shape (M + 1,), float64.

    The mean square of the change of the logit, to first order and as if g and the output were
    independent: Σ σ_j²·d_jᵀE[ggᵀ]d_j over the components that are dropped, with σ_j the deviation of
    score j and d_j what it adds to the outputs.

    Args:
        projection: Of rank M, with scores that are not correlated.
        sensitivity: E[ggᵀ], shape (M, M).
    """
    weights = (projection.decode * (sensitivity @ projection.decode)).sum(0).clamp(min=0)
    dropped = (projection.deviations.square() * weights).flip(0).cumsum(0).flip(0)
    return torch.cat([dropped, dropped.new_zeros(1)])
