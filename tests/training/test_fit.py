"""What the driver decides between two starts of Ray Train."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from afm_dist import storage
from afm_dist.checkpoint.config import ModelConfig
from afm_dist.checkpoint.pretrained import save_pretrained
from afm_dist.errors import DataError, OptionError, StageError
from afm_dist.runtime.resources import ResourceOptions, TrainingResources
from afm_dist.training import fit as fit_module
from afm_dist.training.fit import WorkerGroup
from afm_dist.training.history import EvaluationPoint, History
from afm_dist.training.recipe import Recipe
from afm_dist.training.registration import RAY_TRAIN, Registered
from afm_dist.training.worker import Candidate
from tests.small_dataset import FIELDS, write_dataset

CPUS = ResourceOptions(use_gpu="never")
TWO = WorkerGroup(workers=2, options=CPUS)


def registered(**changes: Any) -> Registered:
    values = {
        "candidate": "model",
        "step": 8,
        "kept_step": 8,
        "threads": 4,
        "device": "cpu",
        "digest": "0",
        "workers": 2,
        "exchange": "exact",
        "exchange_digests": ["", ""],
        "attempt": "attempt-002",
        "checkpoint": "checkpoint-model-00000008",
    }
    return Registered(**{**values, **changes})


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sets what each worker gets; an exception is raised once, then the next answer is given."""

    def offer(*answers: TrainingResources | Exception) -> None:
        queue = list(answers)

        def training_resources(options: ResourceOptions, workers: int) -> TrainingResources:
            answer = queue.pop(0) if len(queue) > 1 else queue[0]
            if isinstance(answer, Exception):
                raise answer
            return answer

        monkeypatch.setattr(fit_module, "training_resources", training_resources)
        monkeypatch.setattr(fit_module, "POLL_S", 0.0)

    return offer


class Events(list[tuple[str, dict[str, Any]]]):
    def __call__(self, what: str, /, **details: Any) -> None:
        self.append((what, details))


def test_a_training_goes_on_with_the_threads_it_began_with(
    cluster: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    cluster(TrainingResources(workers=2, cpus=16))

    resources = fit_module._resources(
        WorkerGroup(workers=2, options=CPUS), registered(), Events(), again=False
    )

    assert resources == TrainingResources(workers=2, cpus=4)
    printed = capsys.readouterr()
    assert "model: going on from step 8 with 4 threads per worker" in printed.out
    assert not printed.err


def test_with_fewer_cpus_it_goes_on_with_fewer_threads_and_says_so(
    cluster: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    cluster(TrainingResources(workers=2, cpus=1))

    assert fit_module._resources(TWO, registered(), Events(), again=False).cpus == 1
    assert (
        "began with 4 threads per worker on cpu, and goes on with 1 on cpu: the last digits of the weights "
        "may become others" in " ".join(capsys.readouterr().err.split())
    )


def test_exact_sums_go_on_with_other_workers_and_say_so(
    cluster: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    cluster(TrainingResources(workers=3, cpus=4))

    resources = fit_module._resources(
        WorkerGroup(workers=3, options=CPUS), registered(), Events(), again=False
    )

    assert resources.workers == 3
    assert (
        "the training of model began with 2 workers, and goes on with 3: the bits of the weights may become "
        "others" in " ".join(capsys.readouterr().err.split())
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"exchange_digests": ["12", "34"]},
            "--workers 3: the training began with 2 workers, and the exchange exact has a state on each of "
            "them; go on with --workers 2",
        ),
        ({"exchange": "econtrol"}, "exchange exact: the training began with the exchange econtrol"),
    ],
)
def test_workers_that_cannot_take_over_a_state_are_refused_by_name(
    cluster: Callable[..., None], changes: dict[str, Any], message: str
) -> None:
    cluster(TrainingResources(workers=3, cpus=4))

    with pytest.raises(OptionError, match=message):
        fit_module._resources(
            WorkerGroup(workers=3, options=CPUS), registered(**changes), Events(), again=False
        )


def test_a_first_start_that_does_not_fit_is_refused_at_once(cluster: Callable[..., None]) -> None:
    cluster(OptionError("--workers 9: Ray has only 2 CPUs"))

    with pytest.raises(OptionError, match="--workers 9"):
        fit_module._resources(WorkerGroup(workers=9, options=CPUS), None, Events(), again=False)


def test_a_restart_waits_for_nodes_and_says_so_once(
    cluster: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    missing, found = OptionError("--workers 2: Ray has only 1 CPUs"), TrainingResources(workers=2, cpus=4)
    cluster(missing, missing, found)
    events = Events()

    assert fit_module._resources(TWO, registered(), events, again=True) == found
    assert events == [("waiting for nodes", {"reason": "--workers 2: Ray has only 1 CPUs"})]
    assert capsys.readouterr().err.count("waiting for nodes") == 1


def test_a_restart_does_not_wait_for_ever(
    cluster: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster(OptionError("--workers 2: Ray has only 1 CPUs"))
    monkeypatch.setattr(fit_module, "WAIT_FOR_NODES_S", 0.0)

    with pytest.raises(StageError, match=r"waited 0 s for nodes.*run the same command to go on"):
        fit_module._resources(TWO, registered(), Events(), again=True)


def candidate(folder: Path, name: str = "model") -> Candidate:
    return Candidate(name=name, source="unused", output=str(folder / name))


def test_a_registered_checkpoint_that_is_gone_is_an_error_and_no_new_beginning(tmp_path: Path) -> None:
    registered().write(str(tmp_path))

    with pytest.raises(StageError, match=r"checkpoint of model at step 8 was registered, but is gone"):
        fit_module._last_checkpoint(str(tmp_path), candidate(tmp_path))


def test_the_next_model_does_not_go_on_from_the_checkpoint_of_the_one_before(tmp_path: Path) -> None:
    registered().write(str(tmp_path))

    assert fit_module._last_checkpoint(str(tmp_path), candidate(tmp_path, "next")) is None


def test_a_note_of_a_checkpoint_that_was_altered_is_refused_by_name(tmp_path: Path) -> None:
    registered().write(str(tmp_path))
    path = tmp_path / "registered.json"
    content = path.read_text()
    for old, new in (('"step": 8', '"step": 9'), ('"threads"', '"thread"'), ("{", "[")):
        path.write_text(content.replace(old, new, 1))

        with pytest.raises(DataError, match=r"registered\.json: "):
            fit_module._last_checkpoint(str(tmp_path), candidate(tmp_path))


@pytest.mark.parametrize("name", ["history.json", "checkpoint/config.json", "checkpoint/model.safetensors"])
def test_a_model_that_was_finished_and_altered_is_refused_before_the_others_are_trained(
    tmp_path: Path, name: str
) -> None:
    manifest, hyper = write_dataset(tmp_path / "log"), {"embedding_dim": 4, "hidden": (8,)}
    config = ModelConfig(architecture="deepfm", hyper_parameters=hyper, fields=FIELDS)
    done = candidate(tmp_path, "done")
    save_pretrained(config.build(), done.checkpoint, config)
    point = EvaluationPoint(step=0, rows=0, train_loss=None, validation_auc=0.75, validation_log_loss=0.5)
    storage.write_sealed_json(done.history, History(curve=[point], kept_step=0).to_json())
    assert History.read(done.history).best == point
    path = Path(done.output, name)
    content = bytearray(path.read_bytes())
    content[content.find(b"0.75") + 2] ^= 1
    path.write_bytes(content)

    with pytest.raises(DataError, match=rf"{name}: .*altered"):
        fit_module.fit([done, candidate(tmp_path)], manifest, Recipe(), folder=str(tmp_path))


def test_of_earlier_starts_only_the_registered_checkpoint_stays(tmp_path: Path) -> None:
    root = tmp_path / RAY_TRAIN
    for attempt in ("attempt-001", "attempt-002"):
        for step in (4, 8, 12):
            folder = root / attempt / f"checkpoint-model-{step:08d}"
            folder.mkdir(parents=True)
            (folder / "state.json").touch()

    assert fit_module._clear(str(tmp_path), registered()) == "attempt-003"
    assert [path.relative_to(root).as_posix() for path in root.glob("*/*")] == [
        "attempt-002/checkpoint-model-00000008"
    ]

    assert fit_module._clear(str(tmp_path), None) == "attempt-003"
    assert not list(root.iterdir())


def test_distilling_without_a_teacher_is_refused_by_name(tmp_path: Path) -> None:
    manifest = write_dataset(tmp_path / "log")

    with pytest.raises(OptionError, match=r"distill_weight 0\.5: model has no teacher"):
        fit_module.fit([candidate(tmp_path)], manifest, Recipe(distill_weight=0.5), folder=str(tmp_path))


def test_a_teacher_of_another_schema_is_refused(tmp_path: Path) -> None:
    manifest, hyper = write_dataset(tmp_path / "log"), {"embedding_dim": 4, "hidden": (8,)}
    config = ModelConfig(architecture="deepfm", hyper_parameters=hyper, fields=FIELDS[:2])
    save_pretrained(config.build(), str(tmp_path / "teacher"), config)
    taught = replace(candidate(tmp_path), teacher=str(tmp_path / "teacher"))

    with pytest.raises(DataError, match=r"teacher was trained on another schema .* field 'age'"):
        fit_module.fit([taught], manifest, Recipe(distill_weight=0.5), folder=str(tmp_path))
