from __future__ import annotations

import importlib
import sys
import threading
from pathlib import Path

import pytest
import ray
import torch
from torch import Tensor, nn

from afm_dist.errors import OptionError
from afm_dist.methods.low_rank.layers import LowRankLinear
from afm_dist.models import build_model
from afm_dist.runtime.sharing import load_shared, model_bytes, model_digest, share
from tests.small_dataset import FIELDS


class Everything(nn.Module):
    """bfloat16 and float64 weights, tied ones, buffers that are stored and not, a view, nothing."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(6, 4)
        self.output = nn.Linear(4, 6, bias=False)
        self.output.weight = self.embedding.weight
        self.bits16 = nn.Parameter(torch.randn(3, 4).bfloat16())
        self.bits64 = nn.Parameter(torch.randn(4, dtype=torch.float64), requires_grad=False)
        self.transposed = nn.Parameter(torch.randn(5, 4).T)
        self.empty = nn.Parameter(torch.empty(0, 3))
        self.norm = nn.BatchNorm1d(4)
        self.register_buffer("hidden", torch.arange(4.0), persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        vectors = self.norm(self.embedding(ids) * self.hidden + self.bits64.float())
        return self.output(vectors) + (vectors @ self.transposed + self.bits16.sum()).sum(1, keepdim=True)


@pytest.fixture
def model() -> nn.Module:
    return Everything().eval()


@pytest.mark.ray
def test_a_shared_model_is_the_same_model(local_ray: None, model: nn.Module) -> None:
    loaded = load_shared(share(model))

    assert model_digest(loaded) == model_digest(model)
    assert loaded.bits16.dtype == torch.bfloat16
    assert loaded.output.weight is loaded.embedding.weight
    assert torch.equal(loaded.hidden, model.hidden)
    assert "hidden" not in loaded.state_dict()
    for name, parameter in model.named_parameters():
        assert isinstance(loaded.get_parameter(name), nn.Parameter)
        assert loaded.get_parameter(name).requires_grad == parameter.requires_grad
    ids = torch.arange(6)
    # A transposed view comes back with its numbers side by side: some processors round its product otherwise.
    torch.testing.assert_close(loaded(ids), model(ids), rtol=1e-6, atol=1e-5)


@pytest.mark.ray
def test_a_worker_gets_the_same_bits(local_ray: None, model: nn.Module) -> None:
    @ray.remote(num_cpus=1)
    def digest(shared) -> str:
        return model_digest(load_shared(shared))

    assert ray.get(digest.remote(share(model))) == model_digest(model)


@pytest.mark.ray
def test_the_tensors_are_not_copied(local_ray: None) -> None:
    shared = share(nn.Linear(300, 300))

    loaded = load_shared(shared)

    again = load_shared(shared)
    assert loaded.weight.data_ptr() == again.weight.data_ptr()
    assert len(shared.skeleton) < 10_000


def private_bytes() -> int:
    """Memory of this process that it shares with no other."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))


@pytest.mark.ray
@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux")
def test_a_table_takes_no_memory_of_a_worker_s_own(local_ray: None) -> None:
    table = nn.Embedding.from_pretrained(torch.ones(1_600_000, 32))
    assert model_bytes(table) > 200_000_000

    @ray.remote(num_cpus=1)
    def growth(shared, copied: bool) -> int:
        before = private_bytes()
        model = load_shared(shared)
        if copied:
            model.weight = nn.Parameter(model.weight.clone())
        assert float(model.weight.sum(dtype=torch.float64)) == model.weight.numel()  # reads every page
        return private_bytes() - before

    shared = share(table)

    assert max(ray.get([growth.remote(shared, False) for _ in range(2)])) < 5_000_000
    assert ray.get(growth.remote(shared, True)) > 200_000_000  # the measure would see a copy


@pytest.mark.ray
def test_a_shared_model_is_in_eval_mode_and_the_original_untouched(local_ray: None) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout()).train()

    loaded = load_shared(share(model))

    assert not any(module.training for module in loaded.modules())
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("name", [name for name, _ in Everything().named_parameters() if name != "empty"])
def test_the_digest_changes_with_the_last_bit_of_any_parameter(model: nn.Module, name: str) -> None:
    before = model_digest(model)

    with torch.no_grad():
        last = model.get_parameter(name)[..., -1:]  # one element wide, so any stride will do
        last.copy_(torch.nextafter(last, torch.full_like(last, 100)))

    assert model_digest(model) != before


@pytest.mark.parametrize("name", ["hidden", "norm.running_mean", "norm.num_batches_tracked"])
def test_the_digest_sees_buffers(model: nn.Module, name: str) -> None:
    before = model_digest(model)

    model.get_buffer(name).add_(1)

    assert model_digest(model) != before


def test_the_digest_sees_what_the_tensors_are_used_for() -> None:
    torch.manual_seed(0)
    linear = LowRankLinear(4, 4, 2, "none")
    plain = LowRankLinear(4, 4, 2, "plain")
    plain.load_state_dict(linear.state_dict())

    assert model_digest(plain) != model_digest(linear)


def test_the_digest_sees_plain_values_that_are_not_printed() -> None:
    digests = set()
    for scale in (1.0, 2.0, (1.0, None), {"scale": 1.0}):
        model = nn.Linear(2, 2)
        nn.init.ones_(model.weight)
        nn.init.ones_(model.bias)
        model.scale = scale
        model.lock = threading.Lock()  # printed differently each time
        digests |= {model_digest(model), model_digest(model.eval())}

    assert len(digests) == 4


def test_the_digest_sees_what_a_class_computes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    digests = set()
    for scale in (1, 1, 20):
        (tmp_path / "scaled_model.py").write_text(
            "from torch import nn\n\n\nclass Scaled(nn.Module):\n"
            f"    def forward(self, x):\n        return x * {scale}\n"
        )
        sys.modules.pop("scaled_model", None)
        importlib.invalidate_caches()
        digests.add(model_digest(importlib.import_module("scaled_model").Scaled()))

    assert len(digests) == 2


@pytest.mark.ray
def test_a_model_that_cannot_be_sent_is_refused_with_the_reason(local_ray: None) -> None:
    model = nn.Linear(2, 2)
    model.lock = threading.Lock()

    with pytest.raises(OptionError, match=r"cannot be sent to workers: cannot pickle '_thread.lock' object"):
        share(model)


def test_the_digest_is_that_of_the_same_model_built_again() -> None:
    digests = set()
    for _ in range(2):
        torch.manual_seed(0)
        digests.add(model_digest(build_model("deepfm", FIELDS, {"embedding_dim": 4, "hidden": (3,)})))

    assert len(digests) == 1


def test_the_bytes_of_a_model_are_those_of_its_tensors() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).to(torch.float64)

    assert model_bytes(model) == 8 * (3 * 2 + 2 + 2 + 2) + 8 * (2 + 2) + 8
