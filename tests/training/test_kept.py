from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from afm_dist.checkpoint.config import ModelConfig
from afm_dist.errors import StageError
from afm_dist.training.kept import KeptWeights
from afm_dist.training.registration import Registered


def registered(kept_step: int) -> Registered:
    return Registered(
        candidate="model",
        step=99,
        kept_step=kept_step,
        threads=1,
        device="cpu",
        digest="0",
        workers=1,
        exchange="exact",
        exchange_digests=[""],
        attempt="attempt-001",
        checkpoint="checkpoint",
    )


class Keeping:
    """Weights that hold the step they are of."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.kept = KeptWeights(str(folder), ModelConfig(hyper_parameters={}))

    def add(self, step: int, at: Registered | None = None) -> None:
        model = nn.Linear(1, 1, bias=False)
        nn.init.constant_(model.weight, step)
        self.kept.add(model, step, at)

    def commit(self, step: int) -> float:
        self.kept.commit(step, str(self.folder / "checkpoint"))
        content = (self.folder / "checkpoint" / "model.safetensors").read_bytes()
        return float(torch.frombuffer(bytearray(content[-4:]), dtype=torch.float32))

    def steps(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir())


@pytest.fixture
def keeping(tmp_path: Path) -> Keeping:
    return Keeping(tmp_path)


def test_weights_that_a_restart_may_go_back_to_stay(keeping: Keeping) -> None:
    keeping.add(4)
    keeping.add(8, registered(4))
    keeping.add(12, registered(4))

    assert keeping.steps() == ["kept-00000004", "kept-00000008", "kept-00000012"]
    assert keeping.commit(4) == 4


def test_weights_that_were_surpassed_at_the_registered_checkpoint_go(keeping: Keeping) -> None:
    keeping.add(4)
    keeping.add(8, registered(4))
    keeping.add(12, registered(8))

    assert keeping.steps() == ["kept-00000008", "kept-00000012"]


def test_the_kept_weights_take_the_place_of_an_earlier_result_and_of_the_others(keeping: Keeping) -> None:
    keeping.add(4)
    keeping.commit(4)
    keeping.add(8)
    keeping.add(12)

    assert keeping.commit(8) == 8
    assert keeping.steps() == ["checkpoint"]


def test_committing_again_after_an_interruption_changes_nothing(keeping: Keeping) -> None:
    keeping.add(8)
    keeping.commit(8)

    assert keeping.commit(8) == 8


def test_weights_that_are_gone_are_missed(keeping: Keeping) -> None:
    keeping.add(8)

    with pytest.raises(StageError, match="kept-00000004: the best weights are gone"):
        keeping.commit(4)
