"""The rewriting stages, for every architecture, as the declarations next to the models say."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from afm_dist import storage
from afm_dist.checkpoint import ModelConfig, from_pretrained, load_config, save_pretrained, size_on_disk
from afm_dist.compression.layers import LowRankLinear
from afm_dist.compression.plan import Plan
from afm_dist.compression.ranks import FixedRank, GivenRanks, Policy
from afm_dist.dataset.manifest import Manifest
from afm_dist.dataset.reader import read_batches
from afm_dist.errors import OptionError, StageError
from afm_dist.models import ARCHITECTURES, build_model
from afm_dist.runs import Run, Stage
from afm_dist.stages.compression import (
    MOMENTS,
    Ranks,
    Target,
    check_ranks,
    check_target,
    choose_ranks,
    linear_statistics,
    rewrite_linears,
    rewrite_tables,
    table_statistics,
    target_linears,
)
from afm_dist.stages.training import Models
from afm_dist.statistics.collect import collect_moments
from afm_dist.statistics.moments_file import save_moments
from afm_dist.statistics.observe import forward_batch
from afm_dist.training.recipe import preset
from jobs.compress import Compress, model_config

HYPER = {"embedding_dim": 4, "hidden": [12, 10, 8], "dropout": 0.1}
FOLDED = {"deepfm", "dcn", "dcnv2", "gdcn", "autoint"}

every_architecture = pytest.mark.parametrize("name", ARCHITECTURES)


@every_architecture
def test_ranks_are_checked_before_there_is_data(name: str) -> None:
    config = model_config(Compress(model=name), preset("default"))

    check_ranks(config, FixedRank(rank=64), FixedRank(rank=2))


class Bench:
    """An untrained model, its moments, and a run that may compress it."""

    def __init__(self, name: str, dataset: Manifest, folder: Path, hyper: dict[str, object]) -> None:
        torch.manual_seed(0)
        model = build_model(name, dataset.fields, hyper)
        torch.nn.init.normal_(model.embedding.weight)
        config = ModelConfig(architecture=name, hyper_parameters=hyper, fields=dataset.fields)
        source = str(folder / "baseline")
        save_pretrained(model, source, config)
        self.dataset = dataset
        self.run = Run(str(folder / "run"), job="compress", config={})
        self.data = Stage.external("data", dataset.location, "data")
        self.baseline = Models(
            stage=Stage.external("baseline", source, "model"), checkpoints={"baseline": source}, histories={}
        )
        self.batches = list(read_batches(dataset, dataset.shards("train"), 500))
        moments = collect_moments(model, self.batches, target_linears(model), forward_fn=forward_batch)
        self.statistics = self.run.stage("statistics", lambda folder: _save(folder, moments))

    def compress(
        self, linears: Policy, tables: Policy, *, budget: int | None = None
    ) -> tuple[Models, Models]:
        """Without fine-tuning."""
        low_rank = rewrite_linears(
            self.run,
            self.baseline,
            self.statistics,
            policy=linears,
            activation="shifted",
            kappa=2.0,
            ablation=False,
        )
        moments = table_statistics(self.run, self.data, self.dataset, low_rank, stream_check=False)
        return low_rank, rewrite_tables(self.run, low_rank, moments, policy=tables, budget=budget)

    def ranks(self, *, bytes: int | None = None, ratio: float | None = None) -> Ranks:
        """Of a budget."""
        return choose_ranks(
            self.run,
            self.data,
            self.dataset,
            self.baseline,
            self.statistics,
            Target(bytes=bytes, ratio=ratio, activation="shifted", kappa=2.0),
        )


@every_architecture
def test_layers_are_rewritten_and_tables_folded_where_the_model_declares_it(
    name: str, dataset: Manifest, tmp_path: Path
) -> None:
    bench = Bench(name, dataset, tmp_path, HYPER)

    _, narrow = bench.compress(FixedRank(rank=3), FixedRank(rank=2))

    for row in ("afm-emb", "svd-emb"):
        (entry,) = Plan.load(storage.join(narrow.checkpoints[row], "plan.json")).entries
        assert (entry.name, entry.folded_into) == ("embedding", "mlp.0" if name in FOLDED else None)
        compressed = from_pretrained(narrow.checkpoints[row])
        assert isinstance(compressed.get_submodule("mlp.3"), LowRankLinear)
        assert isinstance(compressed.get_submodule("mlp.6"), LowRankLinear)
        assert compressed.get_submodule("embedding").folded == (name in FOLDED)
        assert compressed(bench.batches[0].ids, bench.batches[0].numeric).isfinite().all()


@every_architecture
def test_a_checkpoint_within_a_budget_is_no_larger(name: str, dataset: Manifest, tmp_path: Path) -> None:
    bench = Bench(name, dataset, tmp_path, {"embedding_dim": 8, "hidden": [80, 72, 64], "dropout": 0.1})
    before = size_on_disk(bench.baseline.checkpoints["baseline"])
    # Most of DLRM is its bottom MLP, which is not compressed.
    ratio = 1.04 if name == "dlrm" else 1.5

    ranks = bench.ranks(ratio=ratio)
    _, narrow = bench.compress(ranks.linears, ranks.tables, budget=ranks.budget)

    for row in ("afm-emb", "svd-emb"):
        after = size_on_disk(narrow.checkpoints[row])
        assert after <= before / ratio
        # What is kept back for names and the plan is little; a rank more would cost about as much.
        assert after > before / ratio - 8000


def test_a_budget_that_cannot_be_met_says_which_can(dataset: Manifest, tmp_path: Path) -> None:
    bench = Bench("deepfm", dataset, tmp_path, {"embedding_dim": 8, "hidden": [80, 72, 64], "dropout": 0.1})

    for budget in (1, 10**9):
        with pytest.raises(OptionError) as caught:
            bench.ranks(bytes=budget)
        with pytest.raises(OptionError) as before:
            check_target(
                load_config(bench.baseline.checkpoints["baseline"]),
                bench.baseline.checkpoints["baseline"],
                Target(bytes=budget, activation="shifted", kappa=2.0),
            )
        assert str(before.value) == str(caught.value)
        if budget == 1:
            least = int(re.search(r"bytes: ([\d,]+) of", str(caught.value))[1].replace(",", ""))
    assert set(bench.ranks(bytes=least).linears.ranks.values()) == {1}


def test_a_checkpoint_over_its_budget_is_refused(dataset: Manifest, tmp_path: Path) -> None:
    bench = Bench("deepfm", dataset, tmp_path, HYPER)

    with pytest.raises(StageError, match="more than the budget of 100"):
        bench.compress(FixedRank(rank=3), FixedRank(rank=2), budget=100)


def test_a_table_may_be_left_as_it_is(dataset: Manifest, tmp_path: Path) -> None:
    bench = Bench("deepfm", dataset, tmp_path, HYPER)
    ranks = GivenRanks(ranks={"mlp.3": 2, "mlp.6": None, "embedding": None})

    low_rank, narrow = bench.compress(ranks, ranks)

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
    baseline = Models(stage=stage, checkpoints={"baseline": source}, histories={})
    data = Stage.external("data", dataset.location, "data")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    for _ in range(2):
        run = Run(str(tmp_path / "run"), job="compress", config={})
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr("afm_dist.stages.compression.save_moments", killed)
            linear_statistics(run, data, dataset, baseline)
    run = Run(str(tmp_path / "run"), job="compress", config={})
    done = linear_statistics(run, data, dataset, baseline)

    lines = Path(run.path, "events.jsonl").read_text().splitlines()
    events = [json.loads(line)["event"] for line in lines]
    groups = len(dataset.shards("train"))
    assert events.count("group committed") == groups
    assert events.count("groups found committed") == 2
    assert sorted(path.name for path in Path(done.path).iterdir()) == ["_SUCCESS", MOMENTS]


def _save(folder: str, moments: dict) -> None:
    save_moments(storage.join(folder, MOMENTS), moments)
