"""The toy method goes through the job: compared, fine-tuned, shipped, reported, resumed, exported, swept."""

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
from jobs import compress, export
from jobs.compress_options import Compress
from tests.frozen.here import trainings_in_this_process, without_times
from tests.methods.toy import IntegerStore, Toy

pytestmark = [pytest.mark.usefixtures("with_toy", "local_ray"), pytest.mark.ray]

HYPER = {"embedding_dim": 4, "hidden": [12, 10, 8], "dropout": 0.1}


@pytest.fixture
def baseline(dataset: Manifest, tmp_path: Path) -> str:
    torch.manual_seed(0)
    model = build_model("deepfm", dataset.fields, HYPER)
    config = ModelConfig(architecture="deepfm", hyper_parameters=HYPER, fields=dataset.fields)
    save_pretrained(model, str(tmp_path / "baseline"), config)
    return str(tmp_path / "baseline")


@pytest.fixture(autouse=True)
def here() -> Iterator[None]:
    """Trainings in this process, which knows the toy; workers know the folders of ``afm_dist.methods``."""
    with trainings_in_this_process(), without_times():
        yield


def options(dataset: Manifest, checkpoint: str, output: Path, **given: Any) -> Compress:
    return Compress(
        data=dataset.location, checkpoint=checkpoint, output=str(output), finetune_batch_size=256, **given
    )


def test_it_is_compared_shipped_reported_and_exported(
    dataset: Manifest, baseline: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run"
    requested = options(dataset, baseline, output, methods="afm,toy", ship="toy", mlp_rank=4, embedding_dim=2)

    compress.compress(requested)

    report = storage.read_json(str(output / "report/report.json"), dict[str, Any])
    rows = {(row["name"], row["stage"]): row for row in report["rows"]}
    assert {name for name, _ in rows} >= {"afm-emb", "toy-mlp", "toy-emb"}
    assert report["shipped"]["name"] == "toy-emb"
    assert "chosen by --ship" in report["shipped"]["reason"] and "afm-emb has" in report["shipped"]["reason"]
    assert "toy: integer codes, and one slot for all rare ids." in report["notes"]
    own = [layer for layer in report["layers"] if layer["method"] == "toy"]
    assert [layer["name"] for layer in own] == ["embedding[site]", "embedding[ad]"]
    shipped = from_pretrained(str(output / "checkpoint"))
    assert isinstance(shipped.get_submodule("embedding").store, IntegerStore)
    assert size_on_disk(str(output / "checkpoint")) == rows["toy-emb", "after-finetune"]["bytes"]
    assert rows["toy-emb", "after-finetune"]["bytes"] < rows["afm-emb", "after-finetune"]["bytes"]
    # What it says in the plan is what is there, stacked on low rank.
    tags = [entry.config.tag for entry in load_config(str(output / "checkpoint")).plan.entries]
    assert tags == ["low-rank", "low-rank", "low-rank", "toy"]

    capsys.readouterr()
    compress.compress(requested)
    assert "every stage is up to date" in capsys.readouterr().out

    exported = tmp_path / "model.pt2"
    export.main(
        export.Export(format="torch-export", checkpoint=str(output / "checkpoint"), output=str(exported))
    )
    assert exported.stat().st_size > 0


def test_a_sweep_tries_its_sizes(dataset: Manifest, baseline: str, tmp_path: Path) -> None:
    output = tmp_path / "run"

    compress.compress(options(dataset, baseline, output, sweep=True, sweep_ratios="1.005"))

    report = storage.read_json(str(output / "report/report.json"), dict[str, Any])
    tried = {point["name"]: point for point in report["sweep"]}
    assert {"toy-25%", "toy-100%", "afm-r1-d1", "baseline"} <= set(tried)
    assert tried["toy-25%"]["bytes"] < tried["toy-100%"]["bytes"] < tried["baseline"]["bytes"]
    assert tried["toy-25%"]["ranks"] == {"embedding": Toy(own=0.25).in_words}
    assert all("auc" in point for point in tried.values())
