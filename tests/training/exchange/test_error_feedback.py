"""An exchange whose state differs by worker, trained by two processes, stopped, and gone on with."""

from __future__ import annotations

import socket
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import Tensor, nn

from afm_dist.dataset.manifest import Manifest
from afm_dist.errors import DataError, OptionError
from afm_dist.models import build_model
from afm_dist.training.exchange.exact import EXACT
from afm_dist.training.history import History
from afm_dist.training.loop import Trainer, Worker
from afm_dist.training.recipe import Recipe
from afm_dist.training.state import State
from tests.small_dataset import write_dataset
from tests.training.exchange.error_feedback import SignsWithErrorFeedback

WORKERS = 2
RECIPE = Recipe(epochs=2, batch_size=128, learning_rate=1e-2, evaluations_per_epoch=2, patience=100)
CUT_AFTER, SAVED = 6, 5
SIGNS = SignsWithErrorFeedback()


class PowerCutError(Exception):
    pass


@dataclass
class Saving:
    """Writes each state as the workers of a training do: what is common once, the rest each."""

    folder: Path
    rank: int
    cut_after: int | None = None
    steps: int = 0
    digests: dict[int, tuple[str, str]] = field(default_factory=dict)

    def keep(self, model: nn.Module, step: int) -> None:
        pass

    def checkpoint_due(self) -> bool:
        return True

    def progress(self, rows: int) -> None:
        self.steps += 1
        if self.steps == self.cut_after:
            raise PowerCutError

    def save(self, state: State) -> None:
        at = str(self.folder / str(state.step))
        common = state.write(at, candidate="model") if self.rank == 0 else ""
        self.digests[state.step] = common, state.write_exchange_state(at, self.rank)
        dist.barrier()

    def load(self, step: int) -> State:
        digests: list[Any] = [None] * WORKERS
        dist.all_gather_object(digests, self.digests[step])
        at = str(self.folder / str(step))
        common = State.read(at, candidate="model", step=step, digest=digests[0][0])
        return common.with_exchange_state(at, self.rank, digests[self.rank][1])


def _model(manifest: Manifest, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return build_model("deepfm", manifest.fields, {"embedding_dim": 4, "hidden": (8, 8), "dropout": 0.2})


def _result(model: nn.Module, history: History) -> dict[str, Any]:
    return {"weights": model.state_dict(), "history": history.to_json()}


def _run(rank: int, port: int, data: str, output: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=WORKERS)
    manifest, worker = Manifest.load(data), Worker(rank, WORKERS)

    def trainer(model: nn.Module, exchange: Any = SIGNS) -> Trainer:
        return Trainer(model, manifest, RECIPE, worker=worker, exchange=exchange)

    results: dict[str, Any] = {}
    for name, exchange in (("whole", SIGNS), ("exact", EXACT)):
        model, saving = _model(manifest), Saving(Path(output, name), rank)
        results[name] = _result(model, trainer(model, exchange).run(saving))
    cut = Saving(Path(output, "cut"), rank, cut_after=CUT_AFTER)
    with pytest.raises(PowerCutError):
        trainer(_model(manifest)).run(cut)
    results["state"] = cut.load(SAVED).exchange_state
    states = ("resumed", cut.load(SAVED)), ("forgetful", replace(cut.load(SAVED), exchange_state={}))
    for name, state in states:
        model, saving = _model(manifest, seed=9), Saving(Path(output, name), rank)
        results[name] = _result(model, trainer(model).run(saving, start=state))
    torch.save(results, Path(output, f"{rank}.pt"))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return write_dataset(tmp_path_factory.mktemp("log"))


@pytest.fixture(scope="module")
def output(log: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    folder = tmp_path_factory.mktemp("results")
    torch.multiprocessing.spawn(_run, (port, log.location, str(folder)), nprocs=WORKERS)
    return folder


@pytest.fixture(scope="module")
def results(output: Path) -> list[dict[str, Any]]:
    return [torch.load(output / f"{rank}.pt", weights_only=True) for rank in range(WORKERS)]


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_each_worker_carries_something_else(results: list[dict[str, Any]]) -> None:
    first, second = (result["state"] for result in results)
    assert "mlp.0.weight" in first
    assert first.keys() == second.keys()
    assert not same(first, second)


def test_a_training_that_goes_on_with_the_state_of_each_worker_ends_with_the_same_bits(
    results: list[dict[str, Any]],
) -> None:
    for result in results:
        assert same(result["resumed"]["weights"], result["whole"]["weights"])
        assert result["resumed"]["history"] == result["whole"]["history"]
        assert same(result["whole"]["weights"], results[0]["whole"]["weights"])


def test_without_the_state_it_would_not(results: list[dict[str, Any]]) -> None:
    assert not same(results[0]["forgetful"]["weights"], results[0]["whole"]["weights"])
    assert not same(results[0]["exact"]["weights"], results[0]["whole"]["weights"])


def test_exact_sums_leave_no_file_of_a_worker(output: Path) -> None:
    assert {path.name for path in (output / "exact" / str(SAVED)).iterdir()} == {
        "state.json",
        "state.safetensors",
    }
    assert {path.name for path in (output / "cut" / str(SAVED)).iterdir()} == {
        "state.json",
        "state.safetensors",
        "exchange-00000.safetensors",
        "exchange-00001.safetensors",
    }


def test_the_part_of_a_worker_that_is_missing_altered_or_of_another_is_refused_by_name(
    output: Path, tmp_path: Path
) -> None:
    left_out = {"weight": torch.arange(4.0)}
    state = State(1, History(), torch.zeros(0), {}, {}, workers=2, exchange="signs", exchange_state=left_out)
    digest = state.write_exchange_state(str(tmp_path), 1)
    assert state.with_exchange_state(str(tmp_path), 1, digest).exchange_state.keys() == {"weight"}

    with pytest.raises(DataError, match=r"exchange-00000\.safetensors: missing"):
        state.with_exchange_state(str(tmp_path), 0, digest)
    path = tmp_path / "exchange-00001.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"exchange-00001\.safetensors: truncated or altered"):
        state.with_exchange_state(str(tmp_path), 1, digest)


def saved_state(log: Manifest, exchange: Any) -> State:
    """The last state of a training by one worker."""
    states: list[State] = []

    class Collecting(Saving):
        def save(self, state: State) -> None:
            states.append(state)

    Trainer(_model(log), log, RECIPE, exchange=exchange).run(Collecting(Path(), 0))
    return states[-1]


def test_a_state_of_each_worker_is_not_for_another_number_of_workers(log: Manifest) -> None:
    carrying = replace(saved_state(log, SIGNS), workers=2)
    trainer = Trainer(_model(log), log, RECIPE, exchange=SIGNS)

    with pytest.raises(OptionError, match=r"--workers 1: .* began with 2 workers, and the exchange signs"):
        trainer.run(Saving(Path(), 0), start=carrying)


def test_exact_sums_go_on_with_another_number_of_workers(log: Manifest) -> None:
    of_two = replace(saved_state(log, EXACT), workers=2)

    assert Trainer(_model(log), log, RECIPE).run(Saving(Path(), 0), start=of_two).finished


def test_a_state_of_another_exchange_is_refused_by_name(log: Manifest) -> None:
    exact = saved_state(log, EXACT)
    trainer = Trainer(_model(log), log, RECIPE, exchange=SIGNS)

    with pytest.raises(OptionError, match="exchange signs: the training began with the exchange exact"):
        trainer.run(Saving(Path(), 0), start=exact)


def test_the_state_of_tables_drawn_anew_is_forgotten(log: Manifest) -> None:
    forgotten: list[str] = []
    exchange = SignsWithErrorFeedback().build(1)
    exchange.forget = forgotten.extend

    class Config(SignsWithErrorFeedback):
        def build(self, world_size: int) -> Any:
            return exchange

    recipe = RECIPE.using(reset_tables=True)
    states = Saving(Path(), 0)
    states.save = lambda state: None
    Trainer(_model(log), log, recipe, exchange=Config()).run(states)

    assert forgotten == ["embedding.weight", "linear.weight"]
