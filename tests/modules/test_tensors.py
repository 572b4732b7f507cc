from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from afm_dist.checkpoint.pretrained import from_pretrained, save_pretrained
from afm_dist.errors import DataError, OptionError


class Tied(nn.Module):
    """A table that is also the output layer, and a layer that goes by two names."""

    def __init__(self, *, tied: bool = True) -> None:
        super().__init__()
        self.table = nn.Embedding(9, 4)
        self.first = self.second = nn.Linear(4, 4)
        self.output = nn.Linear(4, 9, bias=False)
        self.frozen = nn.Linear(9, 2).requires_grad_(False)
        if tied:
            self.output.weight = self.table.weight
        else:
            self.second = nn.Linear(4, 4)

    def forward(self, ids: Tensor) -> Tensor:
        return self.frozen(self.output(self.second(self.first(self.table(ids)))))


def test_tied_tensors_are_stored_once_and_come_back_tied(tmp_path: Path) -> None:
    model = Tied()
    save_pretrained(model, str(tmp_path))

    loaded = from_pretrained(str(tmp_path), model=Tied())

    stored = safetensors.torch.load_file(tmp_path / "model.safetensors")
    assert set(stored) == {"table.weight", "first.weight", "first.bias", "frozen.weight", "frozen.bias"}
    assert torch.equal(loaded(torch.arange(9)), model(torch.arange(9)))
    assert loaded.output.weight is loaded.table.weight
    assert loaded.first is loaded.second


def test_what_is_frozen_in_the_given_model_stays_frozen(tmp_path: Path) -> None:
    save_pretrained(Tied(), str(tmp_path))

    loaded = from_pretrained(str(tmp_path), model=Tied())

    frozen = {name for name, parameter in loaded.named_parameters() if not parameter.requires_grad}
    assert frozen == {"frozen.weight", "frozen.bias"}


def test_a_checkpoint_of_untied_weights_does_not_fit_a_tied_model(tmp_path: Path) -> None:
    save_pretrained(Tied(tied=False), str(tmp_path))

    with pytest.raises(DataError, match=r"output\.weight is tied to table\.weight in the model, but"):
        from_pretrained(str(tmp_path), model=Tied())


def test_a_checkpoint_of_tied_weights_does_not_fit_an_untied_model(tmp_path: Path) -> None:
    save_pretrained(Tied(), str(tmp_path))

    with pytest.raises(DataError, match=r"Missing key.*second\.weight.*output\.weight"):
        from_pretrained(str(tmp_path), model=Tied(tied=False))


def test_weights_in_the_same_memory_are_refused_by_name(tmp_path: Path) -> None:
    model = Tied(tied=False)
    model.output.weight = nn.Parameter(model.table.weight.detach())

    with pytest.raises(OptionError, match=r"table\.weight and output\.weight share memory .*\.clone\(\)"):
        save_pretrained(model, str(tmp_path))

    assert list(tmp_path.iterdir()) == []


def test_a_state_that_is_no_tensor_is_refused_by_name(tmp_path: Path) -> None:
    class Stateful(nn.Linear):
        def get_extra_state(self) -> dict[str, int]:
            return {"steps": 3}

        def set_extra_state(self, state: object) -> None: ...

    with pytest.raises(OptionError, match="_extra_state is a dict"):
        save_pretrained(nn.Sequential(Stateful(2, 2)), str(tmp_path))
