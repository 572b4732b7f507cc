"""The statistics pass's inner loop on one thread: moments of the second and third layers' outputs.

And what follows it on the driver.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from afm_dist.evaluation.timing import time_interleaved
from afm_dist.models.layers import MLP, hidden_linears
from afm_dist.statistics.accumulator import MomentAccumulator, Workspace
from afm_dist.statistics.observe import Observer
from jobs.benchmarks import criteo_shape, driver_statistics
from jobs.benchmarks.conditions import one_thread
from jobs.benchmarks.result import Result, rates

SUITE = "statistics"
FORWARD = "forward alone"
MOMENTS_ALONE = "moments alone"
PEER = "IncrementalPCA alone"
# Rows of the peer's batches over columns: the fewest it takes for all components, and its own choice.
PEER_BATCHES = (1, 5)
# On wide layers a round of the peer takes most of a minute.
WIDE, WIDE_ROUNDS = 1000, 2
OFFSET = 1000.0  # mean over deviation of the rows on which accuracy is measured

Action = Callable[[], object]


@dataclass(frozen=True, kw_only=True)
class MLPShape:
    """The MLP of a published model.

    Attributes:
        name: Put before the names of its figures.
        inputs: Width of the batch.
        hidden: Widths of the hidden layers.
    """

    name: str
    inputs: int
    hidden: Sequence[int]


def criteo(hidden: Sequence[int]) -> MLPShape:
    """Inputs: 26 fields of 16 dimensions, 13 numbers."""
    return MLPShape(name="Criteo", inputs=criteo_shape.INPUTS, hidden=hidden)


def avazu(hidden: Sequence[int]) -> MLPShape:
    """Inputs: 22 fields of 50 dimensions."""
    return MLPShape(name="Avazu", inputs=22 * 50, hidden=hidden)


def run(shapes: Sequence[MLPShape], *, batch_size: int, rounds: int) -> list[Result]:
    """Speed against the forward alone and scikit-learn, and the error far from the origin."""
    results = []
    with one_thread(), torch.inference_mode():
        for shape in shapes:
            model = MLP(shape.inputs, shape.hidden, 0.0).eval()
            names = [name.removeprefix("mlp.") for name in hidden_linears("mlp", len(shape.hidden))[1:3]]
            rows = torch.randn(batch_size, shape.inputs)
            peer_rounds = min(rounds, WIDE_ROUNDS) if max(shape.hidden) >= WIDE else rounds
            results += _against_forward(shape, model, names, rows, rounds)
            results += _against_peer(shape, model, names, rows, peer_rounds)
            results.append(_accuracy(shape, batch_size))
            results += driver_statistics.run(SUITE, shape.name, shape.hidden[-1], peer_rounds)
    return results


def _against_forward(
    shape: MLPShape, model: nn.Module, names: Sequence[str], rows: Tensor, rounds: int
) -> list[Result]:
    observer = Observer(model, names)

    def observe() -> None:
        with observer.watching():
            model(rows)

    actions: dict[str, Action] = {FORWARD: lambda: model(rows), "forward and moments": observe}
    seconds = time_interleaved(actions, rounds, warm_up=1)
    return rates(SUITE, len(rows), seconds, FORWARD, prefix=f"{shape.name}: ")


def _against_peer(
    shape: MLPShape, model: nn.Module, names: Sequence[str], rows: Tensor, rounds: int
) -> list[Result]:
    """Against scikit-learn on the same outputs: alone, and with the forward of the same round added."""
    outputs = _outputs(model, names, rows)
    batches = [max(1, len(rows) // (factor * max(shape.hidden))) for factor in PEER_BATCHES]
    actions: dict[str, Action] = {
        FORWARD: lambda: model(rows),
        MOMENTS_ALONE: _accumulating(outputs),
    }
    peers = {n: peer for n in batches if (peer := _incremental_pca(outputs, n)) is not None}
    seconds = time_interleaved(actions | {str(n): peer for n, peer in peers.items()}, rounds, warm_up=1)
    results = []
    for n in peers:
        prefix = f"{shape.name}, batch {len(rows) // n}: "
        alone = {PEER: seconds[str(n)], MOMENTS_ALONE: seconds[MOMENTS_ALONE]}
        whole = {
            f"forward, then {what}": [a + b for a, b in zip(seconds[FORWARD], own, strict=True)]
            for what, own in zip(("IncrementalPCA", "moments"), alone.values(), strict=True)
        }
        results += rates(SUITE, len(rows), alone, PEER, prefix=prefix)
        results += rates(SUITE, len(rows), whole, next(iter(whole)), prefix=prefix)
    return results


def _outputs(model: nn.Module, names: Sequence[str], rows: Tensor) -> list[Tensor]:
    """What the layers give for a batch."""
    outputs: list[Tensor] = []
    hooks = [
        model.get_submodule(name).register_forward_hook(lambda _, __, output: outputs.append(output.clone()))
        for name in names
    ]
    model(rows)
    for hook in hooks:
        hook.remove()
    return outputs


def _accumulating(outputs: Sequence[Tensor]) -> Action:
    workspace = Workspace()
    accumulators = [MomentAccumulator(output.shape[1], workspace) for output in outputs]

    def work() -> None:
        for accumulator, output in zip(accumulators, outputs, strict=True):
            accumulator.update(output)

    return work


def _incremental_pca(outputs: Sequence[Tensor], batches: int) -> Action | None:
    """All components, each output in so many batches; None where scikit-learn is not installed."""
    try:
        from sklearn.decomposition import IncrementalPCA
        from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
    except ImportError:
        return None
    fitted = [IncrementalPCA() for _ in outputs]

    def work() -> None:
        with threadpool_limits(1):
            for pca, output in zip(fitted, outputs, strict=True):
                for batch in output.tensor_split(batches):
                    pca.partial_fit(batch.numpy())

    return work


def _accuracy(shape: MLPShape, batch_size: int) -> Result:
    """Relative Frobenius error of the covariance of float32 rows against two passes in float64."""
    width = shape.hidden[-1]
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(width, width, generator=generator)
    parts = [torch.randn(batch_size, width, generator=generator) @ mixing for _ in range(4)]
    parts = [part + OFFSET * width**0.5 for part in parts]
    accumulator = MomentAccumulator(width)
    for part in parts:
        accumulator.update(part)
    whole = torch.cat(parts).double()
    centred = whole - whole.mean(0)
    expected = centred.T @ centred / len(whole)
    error = (accumulator.moments.covariance - expected).norm() / expected.norm()
    return Result(
        suite=SUITE,
        name=f"{shape.name}: covariance error at {OFFSET:g} sigma",
        value=float(error),
        unit="relative",
        reference="two passes in float64",
    )
