"""Training beside other packages: the same DeepFM, ids, labels and batches, in turn.

There are no numeric fields here, because FuxiCTR embeds them, and would have more to do than the others.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
import torch

from afm_dist.dataset.batch import Batch
from afm_dist.errors import OptionError
from afm_dist.evaluation.timing import time_interleaved
from afm_dist.models.deepfm import DeepFM
from afm_dist.training.forward import Forward
from afm_dist.training.loop import optimizer_of
from afm_dist.training.recipe import Recipe
from afm_dist.training.step import Objective, train_step
from jobs.benchmarks import criteo_shape
from jobs.benchmarks.result import Result, rates

SUITE = "training"
BATCHES = 8
RECIPE = Recipe(learning_rate=1e-3, l2=1e-5)
OURS, COMPILED = "afm-dist", "afm-dist, compiled"
DEEPCTR, FUXICTR = "DeepCTR-Torch", "FuxiCTR"


def run(
    *,
    vocabulary: int,
    hidden: Sequence[int],
    batch_sizes: Sequence[int],
    rows_per_run: int,
    rounds: int,
    peers_python: str | None,
) -> list[Result]:
    """Rows a second of every package, and ours over each of the others.

    Args:
        vocabulary: Ids of all fields together.
        hidden: Widths of the MLP's hidden layers.
        batch_sizes: Each is measured.
        rows_per_run: Rows that are trained on in one measurement.
        rounds: Rounds that count.
        peers_python: Interpreter with FuxiCTR; None: without it.
    """
    sizes = criteo_shape.cardinalities(vocabulary)
    results = []
    for batch_size in batch_sizes:
        steps = max(1, rows_per_run // batch_size)
        batches = [_without_numbers(batch) for batch in criteo_shape.batches(sizes, batch_size, BATCHES)]
        with contextlib.ExitStack() as stack:
            actions = {
                OURS: _ours(sizes, hidden, batches, steps, compiled=False),
                COMPILED: _ours(sizes, hidden, batches, steps, compiled=True),
            }
            if (deepctr := _deepctr(sizes, hidden, batches, steps)) is not None:
                actions[DEEPCTR] = deepctr
            if peers_python is not None:
                peer = stack.enter_context(_FuxiCTR(peers_python, sizes, hidden))
                actions[FUXICTR] = peer.action(batches, steps)
            seconds = time_interleaved(actions, rounds)
        prefix = f"peers, batch {batch_size}: "
        for peer_name in (DEEPCTR, FUXICTR):
            if peer_name in seconds:
                named = {name: seconds[name] for name in (peer_name, OURS, COMPILED)}
                results += rates(SUITE, steps * batch_size, named, peer_name, prefix=prefix)
    return results


def _without_numbers(batch: Batch) -> Batch:
    return Batch(batch.ids, batch.numeric[:, :0], batch.labels)


def _ours(
    sizes: Sequence[int], hidden: Sequence[int], batches: Sequence[Batch], steps: int, *, compiled: bool
) -> Callable[[], object]:
    fields = criteo_shape.fields(sizes)[: len(sizes)]
    model = DeepFM(fields, embedding_dim=criteo_shape.EMBEDDING_DIM, hidden=hidden, dropout=0.0)
    recipe = RECIPE.using(batch_size=len(batches[0]), compile=compiled)
    optimizer, forward = optimizer_of(model, recipe), Forward(model, recipe)
    following = itertools.cycle(batches)

    def work() -> None:
        for batch in itertools.islice(following, steps):
            train_step(model, optimizer, batch, len(batch), objective=Objective(forward))

    return work


def _deepctr(
    sizes: Sequence[int], hidden: Sequence[int], batches: Sequence[Batch], steps: int
) -> Callable[[], object] | None:
    """Steps as those of its ``fit``; None when it is not installed."""
    with _quiet():
        try:
            from deepctr_torch.inputs import SparseFeat
            from deepctr_torch.models import DeepFM as Theirs
        except ImportError:
            return None
        columns = [SparseFeat(f"C{i}", size, criteo_shape.EMBEDDING_DIM) for i, size in enumerate(sizes)]
        model = Theirs(
            columns,
            columns,
            dnn_hidden_units=tuple(hidden),
            l2_reg_linear=RECIPE.l2,
            l2_reg_embedding=RECIPE.l2,
            device="cpu",
        )
        model.compile(torch.optim.Adam(model.parameters(), lr=RECIPE.learning_rate), "binary_crossentropy")
    ready = [(batch.ids.float(), batch.labels) for batch in batches]
    following = itertools.cycle(ready)

    def work() -> None:
        # What its fit does with a batch, without its loader.
        model.train()
        for inputs, labels in itertools.islice(following, steps):
            predicted = model(inputs).squeeze()
            model.optim.zero_grad()
            loss = model.loss_func(predicted, labels, reduction="sum")
            (loss + model.get_regularization_loss() + model.aux_loss).backward()
            model.optim.step()

    return work


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with contextlib.redirect_stdout(io.StringIO()):
        yield


class _FuxiCTR:
    """A process that trains with FuxiCTR when it is asked to."""

    def __init__(self, python: str, sizes: Sequence[int], hidden: Sequence[int]) -> None:
        from jobs.benchmarks import __path__ as here

        self._python = python
        numbers = [",".join(map(str, some)) for some in (sizes, hidden)]
        self._command = [
            *(python, str(Path(next(iter(here)), "fuxictr_training.py"))),
            *(numbers[0], str(criteo_shape.EMBEDDING_DIM), numbers[1]),
            *(str(RECIPE.learning_rate), str(RECIPE.l2), str(torch.get_num_threads())),
        ]

    def __enter__(self) -> _FuxiCTR:
        self._folder = tempfile.TemporaryDirectory(prefix="afm-dist-peer-")
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()
        self._folder.cleanup()

    def action(self, batches: Sequence[Batch], steps: int) -> Callable[[], object]:
        """Some steps on these batches."""
        path = Path(self._folder.name, "batches.npz")
        ids = np.stack([batch.ids.numpy() for batch in batches])
        np.savez(path, ids=ids, labels=np.stack([batch.labels.numpy() for batch in batches]))

        def work() -> None:
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            print(path, steps, file=self._process.stdin, flush=True)
            if not self._process.stdout.readline().startswith("seconds "):
                _, errors = self._process.communicate()
                tail = (errors.strip().splitlines() or ["no output"])[-1]
                raise OptionError(f"--peers-python {self._python}: FuxiCTR did not run there ({tail})")

        return work
