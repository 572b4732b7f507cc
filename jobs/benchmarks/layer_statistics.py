"""The statistics pass's inner loop on one thread: moments of the second and third layers' outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from afm_dist.evaluation.timing import time_in_turn
from afm_dist.models.layers import MLP, hidden_linears
from afm_dist.statistics.accumulator import MomentAccumulator
from afm_dist.statistics.observe import Observer
from jobs.benchmarks import criteo_shape
from jobs.benchmarks.result import Result, rates

SUITE = "statistics"
FORWARD = "forward alone"
MOMENTS = "forward and moments"
PEER = "forward and IncrementalPCA"
OFFSET = 1000.0  # mean over deviation of the rows on which accuracy is measured


def run(*, hidden: Sequence[int], batch_size: int, rounds: int) -> list[Result]:
    """Speed against the forward alone, and the error of the covariance far from the origin."""
    with _one_thread(), torch.inference_mode():
        return [*_speed(hidden, batch_size, rounds), _accuracy(hidden[-1], batch_size)]


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _speed(hidden: Sequence[int], batch_size: int, rounds: int) -> list[Result]:
    model = MLP(criteo_shape.INPUTS, hidden, 0.0).eval()
    names = [name.removeprefix("mlp.") for name in hidden_linears("mlp", len(hidden))[1:3]]
    rows = torch.randn(batch_size, criteo_shape.INPUTS)
    observer = Observer(model, names)

    def observe() -> None:
        with observer.watching():
            model(rows)

    actions: dict[str, Callable[[], object]] = {FORWARD: lambda: model(rows), MOMENTS: observe}
    peer = _incremental_pca(model, names, rows)
    if peer is not None:
        actions[PEER] = peer
    seconds = time_in_turn(actions, rounds, warm_up=1)
    return rates(SUITE, batch_size, seconds, FORWARD)


def _incremental_pca(model: nn.Module, names: Sequence[str], rows: Tensor) -> Callable[[], object] | None:
    """The same with scikit-learn; None where it is not installed."""
    try:
        from sklearn.decomposition import IncrementalPCA
        from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
    except ImportError:
        return None
    fitted = {name: IncrementalPCA() for name in names}

    def fit(name: str) -> Callable[[nn.Module, object, Tensor], None]:
        def record(module: nn.Module, inputs: object, output: Tensor) -> None:
            del module, inputs
            fitted[name].partial_fit(output.numpy())

        return record

    def work() -> None:
        hooks = [model.get_submodule(name).register_forward_hook(fit(name)) for name in names]
        with threadpool_limits(1):
            model(rows)
        for hook in hooks:
            hook.remove()

    return work


def _accuracy(width: int, batch_size: int) -> Result:
    """Relative Frobenius error of the covariance of float32 rows against two passes in float64."""
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
        name=f"covariance error at {OFFSET:g} sigma",
        value=float(error),
        unit="relative",
        reference="two passes in float64",
    )
