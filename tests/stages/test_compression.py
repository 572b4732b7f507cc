"""The rewriting stages, for every architecture, as the declarations next to the models say."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from afm_dist import storage
from afm_dist.checkpoint.config import ModelConfig, load_config
from afm_dist.checkpoint.pretrained import from_pretrained, save_pretrained
from afm_dist.compression.plan import Plan, PlanEntry
from afm_dist.compression.rewrite import compress_
from afm_dist.dataset.manifest import Manifest
from afm_dist.errors import OptionError
from afm_dist.large_tables.stored import stored_tensors
from afm_dist.methods.low_rank.config import Factors, LowRank
from afm_dist.methods.low_rank.layers import LowRankLinear
from afm_dist.models import ARCHITECTURES, build_model
from afm_dist.pipelines.context import Context, Dataset
from afm_dist.pipelines.step import Given
from afm_dist.runs.run import Run, Stage
from afm_dist.search.rows import RowOptions
from afm_dist.search.search import counted_moments
from afm_dist.stages.compression import MOMENTS, LinearStatistics, check_model
from afm_dist.stages.report_parts import plan_notes, tables
from afm_dist.stages.training import Model, Models
from afm_dist.statistics.statistics import Statistics
from afm_dist.training.recipe import preset
from jobs.compress_model import model_config
from jobs.compress_options import Compress
from tests.small_dataset import write_vocabulary
from tests.stages.bench import HYPER, Bench, asking, named

ABSORB = RowOptions(linear_terms="absorb")
FOLDED = {"deepfm", "dcn", "dcnv2", "gdcn", "autoint"}

every_architecture = pytest.mark.parametrize("name", ARCHITECTURES)


@every_architecture
def test_ranks_are_checked_before_there_is_data(name: str) -> None:
    config = model_config(Compress(model=name), preset("default"))

    check_model(config, named("afm"), asking(64, 2))


@every_architecture
def test_layers_are_rewritten_and_tables_folded_where_the_model_declares_it(
    name: str, dataset: Manifest, tmp_path: Path
) -> None:
    bench = Bench(name, dataset, tmp_path, HYPER)

    _, narrow = bench.compress((3, 2))

    for row in ("afm-emb", "svd-emb"):
        (entry,) = Plan.load(storage.join(narrow.checkpoints[row], "plan.json")).entries
        assert (entry.name, entry.config.folded_into) == ("embedding", "mlp.0" if name in FOLDED else None)
        compressed = from_pretrained(narrow.checkpoints[row])
        assert isinstance(compressed.get_submodule("mlp.3"), LowRankLinear)
        assert isinstance(compressed.get_submodule("mlp.6"), LowRankLinear)
        assert compressed.get_submodule("embedding").folded == (name in FOLDED)
        assert compressed(bench.batches[0].ids, bench.batches[0].numeric).isfinite().all()


@every_architecture
def test_first_order_weights_are_absorbed_on_request(name: str, dataset: Manifest, tmp_path: Path) -> None:
    bench = Bench(name, dataset, tmp_path, HYPER)

    _, narrow = bench.compress((3, 2), rows=ABSORB)

    for row in ("afm-emb", "svd-emb"):
        (entry,) = Plan.load(storage.join(narrow.checkpoints[row], "plan.json")).entries
        assert entry.config.absorbs == "linear"
        compressed = from_pretrained(narrow.checkpoints[row])
        assert "linear.weight" not in compressed.state_dict()
        assert compressed(bench.batches[0].ids, bench.batches[0].numeric).isfinite().all()


def test_reported_bytes_are_those_of_the_tensors(dataset: Manifest, tmp_path: Path) -> None:
    bench = Bench("deepfm", dataset, tmp_path, HYPER)
    _, narrow = bench.compress((3, 2), rows=ABSORB)
    plan = Plan.load(storage.join(narrow.checkpoints["afm-emb"], "plan.json"))
    source = bench.source
    moments = counted_moments(from_pretrained(source), dataset, absorb=True)

    fields = tables(source, Statistics(moments), plan)

    for checkpoint, key in ((source, "bytes_before"), (narrow.checkpoints["afm-emb"], "bytes_after")):
        tensors = {
            name: tensor.nbytes
            for name, tensor in from_pretrained(checkpoint).state_dict().items()
            if name.startswith(("embedding.", "linear.")) and name != "linear.numeric"
        }
        assert sum(field[key] for field in fields) == sum(tensors.values())


def test_a_model_without_a_first_order_table_is_told_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ARCHITECTURES["deepfm"], "absorbs", {})
    config = model_config(Compress(model="deepfm"), preset("default"))

    with pytest.raises(OptionError, match=r"DeepFM declares no first-order table .* --linear-terms keep"):
        check_model(config, named("afm"), asking(64, 2, ABSORB), ABSORB)


@pytest.mark.parametrize(
    ("name", "dtype"), [("embedding.weight", torch.bfloat16), ("mlp.0.bias", torch.float64)]
)
def test_a_checkpoint_of_other_numbers_is_refused_before_hours_of_work(
    name: str, dtype: torch.dtype, dataset: Manifest, tmp_path: Path
) -> None:
    bench = Bench("deepfm", dataset, tmp_path, HYPER)
    source = bench.source
    config = load_config(source)
    requested = named("afm"), asking(3, 2)
    check_model(config, *requested, checkpoint=source)
    model = from_pretrained(source)
    parameter = model.get_parameter(name)
    parameter.data = parameter.data.to(dtype)
    other = str(tmp_path / "other")
    save_pretrained(model, other, config)

    with pytest.raises(
        OptionError, match=rf"--checkpoint: tensor {name} of .*other is .*, the model's is float32"
    ):
        check_model(config, *requested, checkpoint=other)

    # What it says to do helps.
    save_pretrained(from_pretrained(other).float(), other, config)
    check_model(config, *requested, checkpoint=other)


@pytest.mark.parametrize("method", ["afm", "svd"])
@pytest.mark.parametrize("ranks", [2, {"site": 0, "ad": 2}])
def test_a_row_that_never_occurs_may_hold_anything_whatever_the_method(
    method: Factors, ranks: Any, dataset: Manifest, tmp_path: Path
) -> None:
    bench = Bench("deepfm", dataset, tmp_path, HYPER)
    source = bench.source
    damaged = from_pretrained(source)
    never = 29
    with torch.no_grad():
        damaged.embedding.weight[never] = float("nan")
    save_pretrained(damaged, source, load_config(source))
    counts = np.arange(never, -1, -1)
    counts[0] += dataset.rows("train") - counts.sum()
    vocabulary = write_vocabulary(dataset.location, "site", counts)
    manifest = replace(dataset, vocabulary={**dataset.vocabulary, "site": vocabulary})
    moments = counted_moments(damaged, manifest, absorb=False)
    batch = bench.batches[0]
    ids = batch.ids[:, 0]
    ids[ids == never] = 0

    entry = PlanEntry("embedding", LowRank(factors=method, rank=1, folded_into="mlp.0").with_rank(ranks))
    compressed = compress_(from_pretrained(source), Plan(entries=(entry,)), moments)

    assert compressed(batch.ids, batch.numeric).isfinite().all()


@pytest.mark.parametrize("rank", [None, 2])
def test_rows_are_rounded_whether_or_not_the_table_is_compressed(
    rank: int | None, dataset: Manifest, tmp_path: Path
) -> None:
    bench = Bench("deepfm", dataset, tmp_path, HYPER)
    ranks = bench.given({"mlp.3": 2, "mlp.6": None, "embedding": rank})

    _, narrow = bench.compress(ranks, rows=RowOptions(linear_terms="bfloat16", codes="bfloat16"))

    moments = counted_moments(from_pretrained(bench.source), dataset, absorb=False)
    for row in ("afm-emb", "svd-emb"):
        checkpoint = narrow.checkpoints[row]
        stored = stored_tensors(checkpoint)
        short = {name for name, tensor in stored.items() if tensor.dtype == torch.bfloat16}
        assert short == {"embedding.weight", "linear.weight"}
        plan = Plan.load(storage.join(checkpoint, "plan.json"))
        # As the report says it.
        fields = tables(bench.source, Statistics(moments), plan)
        assert sum(field["bytes_after"] for field in fields) == sum(
            tensor.nbytes for name, tensor in stored.items() if name.startswith("embedding.")
        )
        assert plan_notes(plan)[-1].startswith("The rows of embedding and linear are rounded")


def test_what_is_rounded_is_told_by_fingerprints_and_nothing_else_is() -> None:
    assert RowOptions().changes() == {}
    assert ABSORB.changes() == {"absorb": True}
    assert RowOptions(linear_terms="bfloat16").changes() == {"bfloat16": ["linear_terms"]}
    assert RowOptions(linear_terms="absorb", codes="bfloat16").changes() == {
        "absorb": True,
        "bfloat16": ["codes"],
    }


def test_a_table_may_be_left_as_it_is(dataset: Manifest, tmp_path: Path) -> None:
    bench = Bench("deepfm", dataset, tmp_path, HYPER)
    ranks = bench.given({"mlp.3": 2, "mlp.6": None, "embedding": None})

    low_rank, narrow = bench.compress(ranks)

    assert not Plan.load(storage.join(narrow.checkpoints["afm-emb"], "plan.json")).entries
    logits = [
        from_pretrained(models.checkpoints[row])(bench.batches[0].ids, bench.batches[0].numeric)
        for models, row in ((low_rank, "afm-mlp"), (narrow, "afm-emb"))
    ]
    assert torch.equal(*logits)


@pytest.mark.ray
def test_a_pass_is_not_done_again_when_the_driver_dies_before_its_result_is_saved(
    local_ray: None, dataset: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build_model("deepfm", dataset.fields, HYPER)
    source = str(tmp_path / "baseline")
    config = ModelConfig(architecture="deepfm", hyper_parameters=HYPER, fields=dataset.fields)
    save_pretrained(model, source, config)
    stage = Stage.external("baseline", source, "model")
    baseline = Given(Models(stage=stage, checkpoints={"baseline": source}, histories={}))
    statistics = LinearStatistics(model=Model(baseline, "baseline"))
    data = Stage.external("data", dataset.location, "data")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    for _ in range(2):
        run = Run(str(tmp_path / "run"), job="compress", config={})
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr("afm_dist.stages.compression.save_moments", killed)
            statistics.run(Context(run=run, dataset=Given(Dataset(data, dataset))))
    run = Run(str(tmp_path / "run"), job="compress", config={})
    done = statistics.run(Context(run=run, dataset=Given(Dataset(data, dataset))))

    lines = Path(run.path, "events.jsonl").read_text().splitlines()
    events = [json.loads(line)["event"] for line in lines]
    groups = len(dataset.shards("train"))
    assert events.count("group committed") == groups
    assert events.count("groups found committed") == 2
    assert sorted(path.name for path in Path(done.path).iterdir()) == ["_SUCCESS", MOMENTS]
