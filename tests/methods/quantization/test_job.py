"""Quantised tables through the job: within a budget beside low rank, and int8 to compare with."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from afm_dist import storage
from afm_dist.checkpoint.config import ModelConfig, load_config
from afm_dist.checkpoint.files import size_on_disk
from afm_dist.checkpoint.pretrained import from_pretrained, save_pretrained
from afm_dist.dataset.manifest import Field, Manifest
from afm_dist.errors import OptionError
from afm_dist.methods.quantization.config import Quantization
from afm_dist.models import build_model
from jobs import compress
from jobs.compress_options import Compress
from tests.frozen.here import trainings_in_this_process, without_times
from tests.small_dataset import write_dataset

pytestmark = [pytest.mark.usefixtures("local_ray"), pytest.mark.ray]

FIELDS = (
    Field(name="site", kind="categorical", cardinality=400),
    Field(name="ad", kind="categorical", cardinality=90),
)
HYPER = {"embedding_dim": 8, "hidden": [20, 16, 12], "dropout": 0.0}


@pytest.fixture(autouse=True)
def here() -> Iterator[None]:
    with trainings_in_this_process(), without_times():
        yield


@pytest.fixture
def data(tmp_path: Path) -> Manifest:
    return write_dataset(tmp_path / "data", fields=FIELDS)


@pytest.fixture
def baseline(data: Manifest, tmp_path: Path) -> str:
    torch.manual_seed(0)
    model = build_model("deepfm", data.fields, HYPER)
    torch.nn.init.normal_(model.embedding.weight)
    config = ModelConfig(architecture="deepfm", hyper_parameters=HYPER, fields=data.fields)
    save_pretrained(model, str(tmp_path / "baseline"), config)
    return str(tmp_path / "baseline")


def run(data: Manifest, baseline: str, output: Path, **given: Any) -> dict[str, Any]:
    requested = {"finetune_batch_size": 256} | given
    compress.compress(Compress(data=data.location, checkpoint=baseline, output=str(output), **requested))
    return storage.read_json(str(output / "report/report.json"), dict[str, Any])


@pytest.mark.parametrize("schedule", ["paper", "after-control"])
@pytest.mark.parametrize("linear_terms", ["keep", "absorb"])
def test_a_budget_buys_a_better_model_of_codes_than_of_low_rank_alone(
    data: Manifest, baseline: str, tmp_path: Path, schedule: Any, linear_terms: Any
) -> None:
    ratio = 2.5

    report = run(
        data,
        baseline,
        tmp_path / "run",
        schedule=schedule,
        linear_terms=linear_terms,
        methods="afm,int8,quantized",
        target_ratio=ratio,
        refine_ranks="off",
    )

    rows = {(row["name"], row["stage"]): row for row in report["rows"]}
    budget = size_on_disk(baseline) / ratio
    for name in ("afm-emb", "quantized-emb"):
        assert rows[name, "after-finetune"]["bytes"] <= budget
    # It is there to compare with, and does not fit.
    assert rows["int8-emb", "after-finetune"]["bytes"] > budget
    assert report["shipped"]["name"] != "int8-emb"
    found = storage.read_json(str(tmp_path / "run/ranks/ranks.json"), dict[str, Any])
    assert found["others"]["quantized"]["error"] < found["error"]
    last = "rewrite-embedding" if schedule == "paper" else "rewrite"
    plan = load_config(str(tmp_path / f"run/{last}/quantized-emb")).plan
    assert any(isinstance(entry.config, Quantization) for entry in plan.entries)
    absorbed = [entry.config.absorbs for entry in plan.entries if entry.config.tag == "low-rank"]
    assert ("linear" in absorbed) == (linear_terms == "absorb")


def test_without_a_budget_all_fields_are_stored_in_one_way(
    data: Manifest, baseline: str, tmp_path: Path
) -> None:
    report = run(
        data, baseline, tmp_path / "run", methods="quantized", mlp_rank=4, embedding_dim=4, ship="quantized"
    )

    assert report["shipped"]["name"] == "quantized-emb"
    model = from_pretrained(str(tmp_path / "run/checkpoint"))
    assert model.get_submodule("embedding").store is not None
    assert model.get_submodule("embedding").code_dim == 4


def test_a_budget_needs_something_to_choose(data: Manifest, baseline: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="--methods int8: none of them has sizes"):
        run(data, baseline, tmp_path / "run", methods="int8", target_ratio=2.0)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"methods": "int8", "codes": "bfloat16"}, "--codes bfloat16 and --methods int8 exclude each other"),
        ({"methods": "quantized,scratch"}, "so scratch needs another structure to train; add afm"),
        (
            {"methods": "afm,int8", "target_ratio": 2.0, "ship": "int8"},
            "--ship int8: has a size of its own, whatever the budget",
        ),
    ],
)
def test_what_cannot_go_together_is_refused_before_anything_starts(
    data: Manifest, baseline: str, tmp_path: Path, given: dict[str, Any], words: str
) -> None:
    with pytest.raises(OptionError, match=re.escape(words)):
        run(data, baseline, tmp_path / "run", **given)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("trained", ["factors", "dense"])
def test_grids_leave_a_model_something_to_train(
    data: Manifest, baseline: str, tmp_path: Path, trained: Any
) -> None:
    report = run(
        data, baseline, tmp_path / "run", methods="int8", schedule="at-once", finetune_weights=trained
    )
    assert report["shipped"]["name"] == "int8-emb"


def test_frozen_tables_keep_their_codebooks(data: Manifest, baseline: str, tmp_path: Path) -> None:
    run(
        data,
        baseline,
        tmp_path / "run",
        methods="quantized",
        schedule="at-once",
        mlp_rank=4,
        embedding_dim=4,
        finetune_weights="dense",
        finetune_learning_rate=0.5,
    )
    before, after = (
        from_pretrained(str(tmp_path / "run" / place)).get_submodule("embedding").store.state_dict()
        for place in ("rewrite/quantized-emb", "finetune/quantized-emb/checkpoint")
    )
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("ratio", [1.8, 2.2, 3.0, 4.0])
def test_a_mixture_of_stores_fits_its_budget_with_all_names_in_its_files(
    data: Manifest, baseline: str, tmp_path: Path, ratio: float
) -> None:
    report = run(
        data,
        baseline,
        tmp_path / "run",
        methods="quantized",
        schedule="at-once",
        linear_terms="absorb",
        target_ratio=ratio,
        refine_ranks="off",
    )

    found = {(row["name"], row["stage"]): row for row in report["rows"]}
    assert found["quantized-emb", "before-finetune"]["bytes"] <= size_on_disk(baseline) / ratio
