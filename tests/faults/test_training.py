"""A training whose workers die: it sees the same data and ends with the same weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import ray
import torch

from afm_dist.checkpoint import ModelConfig, save_pretrained
from afm_dist.dataset.manifest import Manifest
from afm_dist.models import build_model
from afm_dist.training import ray_train
from afm_dist.training.fit import fit
from afm_dist.training.history import History
from afm_dist.training.recipe import Recipe
from afm_dist.training.worker import Candidate
from tests.faults import training_kills
from tests.faults.training_kills import Kill, Seen, noting, read_notes
from tests.small_dataset import FIELDS, write_dataset

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]

# 32 steps, evaluations after every fourth.
RECIPE = Recipe(epochs=2, batch_size=64, learning_rate=0.02, evaluations_per_epoch=4, patience=100)
STEPS = 32
SHAPE = {"embedding_dim": 4, "hidden": (16, 8), "dropout": 0.3}


@dataclass
class Trained:
    """A finished training and all that happened in it."""

    folder: Path
    histories: dict[str, History]
    events: list[dict[str, Any]]
    seen: list[Seen]

    def weights(self, name: str = "model") -> bytes:
        return (self.folder / name / "checkpoint" / "model.safetensors").read_bytes()

    def events_of(self, what: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["event"] == what]

    def steps(self, attempt: int, rank: int) -> list[int]:
        name = f"attempt-{attempt:03d}"
        return [seen.step for seen in self.seen if (seen.attempt, seen.rank) == (name, rank)]

    def batches(self) -> dict[tuple[int, int], str]:
        """What each worker trained on in each step that counts: the last time it was done."""
        return {(seen.step, seen.rank): seen.batch for seen in self.seen}


@dataclass
class Bench:
    """A small log and an untrained model, and how to train it."""

    folder: Path
    manifest: Manifest
    monkeypatch: pytest.MonkeyPatch
    counter: Iterator[int] = field(default_factory=lambda: iter(range(1000)))

    def train(self, *kills: Kill, names: tuple[str, ...] = ("model",), **options: Any) -> Trained:
        folder = self.folder / str(next(self.counter))
        notes = folder / "notes"
        notes.mkdir(parents=True)
        events: list[dict[str, Any]] = []
        self.monkeypatch.setattr(ray_train, "run_worker", noting(notes, kills))
        candidates = [
            Candidate(name=name, source=str(self.folder / "source"), output=str(folder / name))
            for name in names
        ]
        histories = fit(
            candidates,
            self.manifest,
            options.pop("recipe", RECIPE),
            folder=str(folder),
            emit=lambda what, /, **details: events.append({"event": what, **details}),
            **options,
        )
        return Trained(folder, histories, events, read_notes(notes))


@pytest.fixture(scope="module")
def bench(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    ray.cloudpickle.register_pickle_by_value(training_kills)
    folder = tmp_path_factory.mktemp("training")
    manifest = write_dataset(folder / "data")
    torch.manual_seed(0)
    config = ModelConfig(architecture="deepfm", hyper_parameters=SHAPE, fields=FIELDS)
    save_pretrained(build_model("deepfm", FIELDS, SHAPE), str(folder / "source"), config)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.25")
        monkeypatch.setenv("RAY_TRAIN_METRICS_ENABLED", "0")
        yield Bench(folder, manifest, monkeypatch)
    ray.cloudpickle.unregister_pickle_by_value(training_kills)


@pytest.fixture(scope="module")
def undisturbed(bench: Bench) -> Callable[[int], Trained]:
    done: dict[int, Trained] = {}

    def trained(workers: int) -> Trained:
        if workers not in done:
            done[workers] = bench.train(workers=workers)
        return done[workers]

    return trained


def check_same(disturbed: Trained, undisturbed: Trained, name: str = "model") -> None:
    """The same data in every step that counts, the same evaluations, the same bytes."""
    # What was done twice was done twice alike.
    assert len({(seen.step, seen.rank, seen.batch) for seen in disturbed.seen}) == len(disturbed.batches())
    assert disturbed.batches() == undisturbed.batches()
    assert disturbed.histories == undisturbed.histories
    assert disturbed.weights(name) == undisturbed.weights(name)


def check_clean(trained: Trained, *names: str) -> None:
    """Nothing is left but results."""
    left = {str(path.relative_to(trained.folder)) for path in trained.folder.rglob("*") if path.is_file()}
    wanted = ("checkpoint/config.json", "checkpoint/model.safetensors", "history.json")
    results = {f"{name}/{path}" for name in names for path in wanted}
    assert {path for path in left if not path.startswith("notes/")} == results


def test_workers_killed_anywhere_leave_the_training_as_it_would_have_been(
    bench: Bench, undisturbed: Callable[[int], Trained]
) -> None:
    trained = bench.train(
        Kill(rank=1, moment="before step", step=6, registered=4),
        Kill(rank=0, moment="checkpoint written", step=8),
        Kill(rank=0, moment="checkpoint reported", step=12, registered=12),
        workers=2,
    )

    starts = trained.events_of("training started")
    assert [start["step"] for start in starts] == [0, 4, 4, 12]
    for rank in (0, 1):
        for attempt, start in enumerate(starts, 1):
            steps = trained.steps(attempt, rank)
            assert steps == list(range(start["step"], start["step"] + len(steps)))
    assert [trained.steps(attempt, 0)[-1] for attempt in (2, 3, 4)] == [7, 11, STEPS - 1]
    assert trained.steps(1, 1)[-1] == 5
    assert set(trained.batches()) == {(step, rank) for step in range(STEPS) for rank in (0, 1)}
    lost = trained.events_of("training lost")
    assert len(lost) == 3
    assert lost[0]["reason"].startswith("worker 1 of the training: its process on"), lost
    check_same(trained, undisturbed(2))
    check_clean(trained, "model")
