"""The orders in which a job compresses, and that a dry run tells of the stages of the run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from afm_dist import storage
from afm_dist.checkpoint.config import ModelConfig, load_config
from afm_dist.checkpoint.files import size_on_disk
from afm_dist.checkpoint.pretrained import from_pretrained, save_pretrained
from afm_dist.dataset.manifest import Manifest
from afm_dist.models import build_model
from afm_dist.pipelines.step import Given, Pipeline, Step
from jobs import compress
from jobs.compress_options import Compress
from jobs.compress_request import Job
from tests.frozen.here import trainings_in_this_process, without_times
from tests.small_dataset import write_dataset

pytestmark = [pytest.mark.usefixtures("local_ray"), pytest.mark.ray]

HYPER = {"embedding_dim": 8, "hidden": [80, 72, 64], "dropout": 0.1}
SCHEDULES = ("paper", "after-control", "at-once")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("schedules")


@pytest.fixture(scope="module")
def data(folder: Path) -> Manifest:
    return write_dataset(folder / "data")


@pytest.fixture(scope="module")
def baseline(data: Manifest, folder: Path) -> str:
    torch.manual_seed(0)
    model = build_model("deepfm", data.fields, HYPER)
    config = ModelConfig(architecture="deepfm", hyper_parameters=HYPER, fields=data.fields)
    save_pretrained(model, str(folder / "baseline"), config)
    return str(folder / "baseline")


@pytest.fixture(autouse=True)
def here() -> Iterator[None]:
    with trainings_in_this_process(), without_times():
        yield


def options(data: Manifest, baseline: str, folder: Path, **given: Any) -> Compress:
    job = {"mlp_rank": 4, "embedding_dim": 2, "finetune_batch_size": 256} | given
    return Compress(data=data.location, checkpoint=baseline, output=str(folder), **job)


@pytest.fixture(scope="module")
def runs(data: Manifest, baseline: str, folder: Path, local_ray: None) -> dict[str, Path]:
    """A run of each schedule, with every variant."""
    with trainings_in_this_process(), without_times():
        for schedule in SCHEDULES:
            methods = "afm,svd,weighted,sequential,scratch"
            compress.compress(options(data, baseline, folder / schedule, schedule=schedule, methods=methods))
    return {schedule: folder / schedule for schedule in SCHEDULES}


def report_of(run: Path) -> dict[str, Any]:
    return storage.read_json(str(run / "report/report.json"), dict[str, Any])


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_variant_is_compressed_fine_tuned_and_scored(runs: dict[str, Path], schedule: str) -> None:
    rows = {(row["name"], row["stage"]): row for row in report_of(runs[schedule])["rows"]}

    assert ("scratch", "trained") in rows
    for name in ("afm", "svd", "weighted", "sequential"):
        for stage in ("before-finetune", "after-finetune"):
            assert rows[f"{name}-emb", stage]["bytes"] < rows["baseline", "trained"]["bytes"]
    assert (("control-mlp", "after-finetune") in rows) == (schedule != "at-once")
    assert report_of(runs[schedule])["shipped"]["name"].endswith("-emb")


def test_the_control_has_the_same_rounds_whenever_the_model_is_compressed(runs: dict[str, Path]) -> None:
    """From the same weights, with the same recipes and the same order of rows: it is the same model."""
    controls = [
        from_pretrained(str(runs["paper"] / "finetune-embedding/control/checkpoint")),
        from_pretrained(str(runs["after-control"] / "finetune/control/checkpoint")),
    ]
    first, second = (model.state_dict() for model in controls)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_after_the_control_it_is_the_control_that_is_compressed(runs: dict[str, Path]) -> None:
    """At full rank the model before fine-tuning has the logits of the control's first round."""
    run = runs["after-control"]
    control = from_pretrained(str(run / "finetune-control/control-mlp/checkpoint")).state_dict()
    found = from_pretrained(str(run / "rewrite/svd-emb")).state_dict()
    other = from_pretrained(str(runs["at-once"] / "rewrite/svd-emb")).state_dict()
    assert torch.equal(found["linear.weight"], control["linear.weight"])
    assert not torch.equal(other["linear.weight"], control["linear.weight"])


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_dry_run_tells_of_the_stages_of_the_run_in_their_order(
    runs: dict[str, Path], data: Manifest, baseline: str, schedule: str
) -> None:
    methods = "afm,svd,weighted,sequential,scratch"
    job = Job.of(options(data, baseline, runs[schedule], schedule=schedule, methods=methods))
    steps = compress.paper_order if schedule == "paper" else compress.at_once

    estimated = [estimate.stage for estimate in Pipeline(steps(job, job.search())).estimates(job.costs())]

    done = [timing["stage"] for timing in report_of(runs[schedule])["timings"]]
    assert estimated == [stage for stage in done if stage in estimated]
    # What is not worth a line takes no pass over the data.
    assert set(done) - set(estimated) <= {"plan", "statistics-embedding", "checkpoint", "statistics"}


def test_a_budget_holds_where_all_is_compressed_at_once(
    data: Manifest, baseline: str, tmp_path: Path
) -> None:
    ratio = 1.5
    job = options(
        data,
        baseline,
        tmp_path / "run",
        schedule="after-control",
        mlp_rank=None,
        embedding_dim=None,
        target_ratio=ratio,
        codes="bfloat16",
    )

    compress.compress(job)

    shipped = str(tmp_path / "run/checkpoint")
    assert size_on_disk(shipped) <= size_on_disk(baseline) / ratio
    assert {entry.config.tag for entry in load_config(shipped).plan.entries} >= {"rounding"}


def test_a_step_gives_its_result_only_once_it_has_run() -> None:
    class Nothing(Step[int]):
        def work(self, context: Any) -> int:
            return 3

    step = Nothing()
    with pytest.raises(AssertionError, match="Nothing has not run"):
        _ = step.result
    Pipeline([Given(1), step]).run(None)
    assert step.result == 3
