"""Where a pass runs: shares of CPUs and GPUs, without a real GPU; the one of these tests is in name only."""

from __future__ import annotations

from pathlib import Path

import pytest
import ray
import torch
from torch import nn

from afm_dist.dataset.batch import Batch
from afm_dist.dataset.manifest import Manifest
from afm_dist.evaluation.score import score_shards
from afm_dist.models import build_model
from afm_dist.runtime import cluster
from afm_dist.runtime.resources import ResourceOptions, TaskResources
from afm_dist.statistics import collect
from afm_dist.statistics.collect import collect_moments
from afm_dist.statistics.moments_file import digest_of
from tests.small_dataset import FIELDS

NEVER = ResourceOptions(use_gpu="never")


def small_model() -> nn.Module:
    torch.manual_seed(0)
    return build_model("deepfm", FIELDS, {"embedding_dim": 4, "hidden": (12, 10, 8)})


@pytest.mark.ray
def test_a_gpu_that_torch_cannot_use_is_said_once_and_not_used(
    ray_with_a_gpu: None, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster._cached_gpu_problem.cache_clear()
    for _ in range(2):
        assert cluster.task_resources(ResourceOptions()) == TaskResources()
    assert capsys.readouterr().err.count("warning: Ray offers GPUs, but torch cannot use them") == 1


@pytest.mark.ray
def test_tasks_of_half_a_cpu_and_a_third_of_a_gpu_give_the_same_bits(
    ray_with_a_gpu: None, dataset: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small_model()

    def on_a_whole_cpu(model: nn.Module, batch: Batch) -> object:
        assert ray.get_runtime_context().get_assigned_resources() == {"CPU": 1.0}
        return model(batch.ids, batch.numeric)

    def on_its_shares(model: nn.Module, batch: Batch) -> object:
        assert ray.get_runtime_context().get_assigned_resources() == {"CPU": 0.5, "GPU": 0.3}
        assert torch.get_num_threads() == 1
        return model(batch.ids, batch.numeric)

    whole = collect_moments(model, dataset, ["mlp.3"], forward_fn=on_a_whole_cpu, options=NEVER)
    # On a GPU the device would be cuda; everything else is as here.
    shares = TaskResources(cpus=0.5, gpus=0.3, device="cpu")
    monkeypatch.setattr(collect, "task_resources", lambda options: shares)
    shared = collect_moments(model, dataset, ["mlp.3"], forward_fn=on_its_shares)
    assert digest_of(shared) == digest_of(whole)


@pytest.mark.ray
def test_partials_are_keyed_by_the_type_of_the_device(
    local_ray: None, dataset: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class StopError(Exception):
        pass

    def stop(*arguments: object, **facts: object) -> None:
        raise StopError(facts)

    facts = []
    # The meta device stands for a GPU.
    for device in ("cpu", "meta"):
        with monkeypatch.context() as patch, pytest.raises(StopError) as stopped:
            patch.setattr(collect, "task_resources", lambda options, on=device: TaskResources(device=on))
            patch.setattr(collect, "Partials", stop)
            collect_moments(small_model(), dataset, ["mlp.3"], folder=str(tmp_path))
        facts.append(stopped.value.args[0]["facts"])
    assert {key for key in facts[0] if facts[0][key] != facts[1][key]} == {"device"}


def test_batches_go_where_the_model_is(dataset: Manifest) -> None:
    seen: list[str] = []

    class OnMeta(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.empty(1, device="meta"))

        def forward(self, ids: torch.Tensor, numeric: torch.Tensor) -> torch.Tensor:
            seen.extend([ids.device.type, numeric.device.type])
            return torch.zeros(len(ids))

    assert len(score_shards(OnMeta(), dataset, dataset.shards("test"))) == dataset.rows("test")
    assert set(seen) == {"meta"}
