from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from afm_dist.errors import StageError
from afm_dist.training.registration import Registered, Registrar


def report(
    registrar: Registrar, candidate: str, step: int, checkpoint: str | None = "checkpoint", workers: int = 2
) -> None:
    metrics = {
        "candidate": candidate,
        "step": step,
        "kept_step": step,
        "threads": 1,
        "device": "cpu",
        "digest": "0",
        "workers": 2,
        "exchange": "exact",
        "exchange_digest": "",
    }
    place: Any = None if checkpoint is None else SimpleNamespace(path=f"bucket/folder/{checkpoint}")
    registrar.after_report(None, [metrics, {**metrics, "exchange_digest": "1"}][:workers], place)


def test_what_was_registered_last_is_written_down(tmp_path: Path) -> None:
    registrar = Registrar(str(tmp_path), "attempt-002", ["first", "second"])
    assert Registered.read(str(tmp_path)) is None

    report(registrar, "first", 4, "four")
    report(registrar, "first", 8, "eight")

    found = Registered.read(str(tmp_path))
    assert found is not None
    assert (found.candidate, found.step, found.attempt) == ("first", 8, "attempt-002")
    assert found.location("s3://there") == "s3://there/ray_train/attempt-002/eight"


def test_what_each_worker_carries_is_registered_with_it(tmp_path: Path) -> None:
    report(Registrar(str(tmp_path), "attempt-001", ["first"]), "first", 4)

    assert Registered.read(str(tmp_path)).exchange_digests == ["", "1"]


def test_a_checkpoint_without_the_part_of_a_worker_is_not_registered(tmp_path: Path) -> None:
    registrar = Registrar(str(tmp_path), "attempt-001", ["first"])
    report(registrar, "first", 4)

    report(registrar, "first", 8, workers=1)

    assert Registered.read(str(tmp_path)).step == 4


def test_a_report_without_a_checkpoint_registers_nothing(tmp_path: Path) -> None:
    report(Registrar(str(tmp_path), "attempt-001", ["first"]), "first", 4, None)

    assert Registered.read(str(tmp_path)) is None


def test_the_next_model_begins_at_its_beginning(tmp_path: Path) -> None:
    registrar = Registrar(str(tmp_path), "attempt-001", ["first", "second"])

    report(registrar, "first", 8)
    report(registrar, "second", 0)

    assert Registered.read(str(tmp_path)).candidate == "second"


@pytest.mark.parametrize(("candidate", "step"), [("second", 0), ("second", 8), ("first", 12)])
def test_a_training_that_silently_went_back_is_stopped(tmp_path: Path, candidate: str, step: int) -> None:
    report(Registrar(str(tmp_path), "attempt-001", ["first", "second"]), "second", 8)
    again = Registrar(str(tmp_path), "attempt-002", ["first", "second"])

    with pytest.raises(
        StageError, match=f"went back to step {step} of {candidate}, though step 8 of second was registered"
    ):
        report(again, candidate, step)
