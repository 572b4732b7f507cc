from __future__ import annotations

from dataclasses import replace

import pytest

from afm_dist.checkpoint.config import ModelConfig
from afm_dist.dataset.manifest import Field, Manifest, Shard
from afm_dist.errors import OptionError
from afm_dist.planning.estimate import Costs, new_model
from afm_dist.planning.show import show
from afm_dist.runtime.resources import Cluster, Node, ResourceOptions
from afm_dist.training.recipe import Recipe

GB = 10**9
FIELDS = (
    *(Field(name=f"c{i}", kind="categorical", cardinality=1_300_000) for i in range(26)),
    *(Field(name=f"n{i}", kind="numeric") for i in range(13)),
)
NODES = tuple(Node(name=f"10.0.0.{i}", cpus=16, memory=40 * GB, object_store=18 * GB) for i in range(1, 33))
CLUSTER = Cluster(nodes=NODES, where="the cluster at 10.0.0.1:6379")


def shards(split: str, rows: int, count: int) -> tuple[Shard, ...]:
    return tuple(
        Shard(path=f"{split}/{i}", rows=rows // count, bytes=rows // count * 157, sha256="")
        for i in range(count)
    )


TERABYTE = Manifest(
    location="s3://bucket/criteo-1tb",
    label="label",
    fields=FIELDS,
    splits={
        "train": shards("train", 4_195_200_000, 10_000),
        "validation": shards("validation", 89_000_000, 300),
        "test": shards("test", 89_000_000, 300),
    },
)


def costs(
    architecture: str = "deepfm",
    *,
    cluster: Cluster = CLUSTER,
    options: ResourceOptions | None = None,
    workers: int = 1,
) -> Costs:
    shape = {"embedding_dim": 16, "hidden": (400, 400, 400)}
    config: ModelConfig = new_model(architecture, shape, TERABYTE)
    return Costs.of(config, TERABYTE, options=options or ResourceOptions(), workers=workers, cluster=cluster)


def test_a_worker_of_the_statistics_holds_no_model_of_its_own() -> None:
    deepfm = costs()
    assert deepfm.bytes > 2.2 * GB
    assert deepfm.statistics("s").memory < 1.2 * GB
    assert deepfm.statistics("s").note == "256 partials of 2.6 MB"
    assert deepfm.statistics("s").disk == 256 * 2 * 400 * 401 * 8


def test_a_training_worker_holds_the_model_and_its_moments() -> None:
    deepfm = costs()
    estimate = deepfm.training_round("train", Recipe())
    assert estimate.memory > 3 * deepfm.bytes


def test_tables_that_are_drawn_anew_let_each_epoch_be_scored_once() -> None:
    seconds = [
        costs().training_round("train", Recipe(epochs=2, **changes)).seconds
        for changes in ({"reset_tables": True}, {"evaluations_per_epoch": 1}, {"evaluations_per_epoch": 4})
    ]
    assert seconds[0] == seconds[1] < seconds[2]


def test_a_teacher_and_an_average_take_memory_and_frozen_tables_save_it() -> None:
    deepfm = costs()
    plain, taught, averaged, frozen, both = (
        deepfm.training_round("finetune", Recipe(**changes))
        for changes in (
            {},
            {"distill_weight": 0.5},
            {"average": True},
            {"trained": "dense"},
            {"trained": "dense", "average": True},
        )
    )
    assert taught.memory == plain.memory + deepfm.bytes
    assert (taught.seconds or 0) > (plain.seconds or 0)
    assert averaged.memory == plain.memory + 2 * deepfm.bytes
    assert frozen.memory == plain.memory - 4 * (deepfm.bytes - deepfm.dense)
    assert both.memory == frozen.memory + 2 * deepfm.dense


def test_small_batches_of_many_workers_wait_for_the_network() -> None:
    deepfm = costs(workers=32)
    small, large = (
        deepfm.training_round("train", Recipe(batch_size=rows)).seconds or 0 for rows in (1_000, 20_000)
    )
    assert small > 3 * large
    # Each step sends the gradients of the dense weights, half a million floats, at a gigabyte a second.
    assert small > 4_195_200 * 2 * 4 * 490_000 / 1e9


def test_bilinear_products_take_more_memory_and_time() -> None:
    deepfm, fibinet = costs().scoring("e", "test"), costs("fibinet").scoring("e", "test")
    assert fibinet.memory > 2 * deepfm.memory
    assert (fibinet.seconds or 0) > 4 * (deepfm.seconds or 0)


def test_no_more_threads_work_than_there_are_groups() -> None:
    half = replace(CLUSTER, nodes=NODES[:16])
    doubled = replace(CLUSTER, nodes=NODES * 2)
    assert costs(cluster=half).statistics("s").seconds == costs(cluster=doubled).statistics("s").seconds


def test_smaller_shares_run_more_tasks_but_make_no_more_cpus() -> None:
    few = replace(CLUSTER, nodes=NODES[:4])
    shared = costs(cluster=few, options=ResourceOptions(task_cpus=0.5))
    assert shared.tasks.slots(few.nodes) == 128
    assert shared.statistics("s").seconds == costs(cluster=few).statistics("s").seconds


def test_times_on_gpus_are_not_made_up() -> None:
    cluster = replace(CLUSTER, nodes=(replace(NODES[0], gpus=4),))
    on_gpu = costs(cluster=cluster, options=ResourceOptions(task_gpus=0.5))
    assert on_gpu.tasks.slots(cluster.nodes) == 8
    assert on_gpu.statistics("s").seconds is None
    assert on_gpu.training_round("t", Recipe()).seconds is None
    assert on_gpu.statistics("s").gpu > on_gpu.bytes
    never = costs(cluster=cluster, options=ResourceOptions(use_gpu="never"))
    assert never.statistics("s").seconds is not None


def test_more_workers_than_the_cluster_has_cpus_are_refused_unless_it_grows() -> None:
    with pytest.raises(OptionError, match="--workers 1000: Ray has only 512 CPUs"):
        costs(workers=1000)
    growing = costs(workers=1000, cluster=replace(CLUSTER, growing=True))
    assert growing.training_round("t", Recipe()).seconds is None


def test_a_plan_is_shown_with_what_each_node_must_have(capsys: pytest.CaptureFixture[str]) -> None:
    deepfm = costs(workers=32)
    stages = [deepfm.training_round("train", Recipe()), deepfm.statistics("statistics-mlp")]
    show(deepfm.plan(stages, output="s3://bucket/run"), check=True)
    shown = capsys.readouterr().out
    for words in (
        "on the cluster at 10.0.0.1:6379: 32 nodes with 16 CPUs, 40.0 GB free, object store 18.0 GB",
        "object store of each node: the model, 2.3 GB",
        "memory of a node for 16 tasks at once (statistics-mlp): ",
        "memory of a node for a training worker (train): ",
        "statistics-mlp: 256 partials of 2.6 MB",
        "in s3://bucket/run (its free space is not known)",
        "the cluster at 10.0.0.1:6379 can hold this",
    ):
        assert words in shown


def test_a_plan_that_does_not_fit_is_shown_and_refused(capsys: pytest.CaptureFixture[str]) -> None:
    tight = tuple(replace(node, memory=6 * GB, object_store=2 * GB) for node in NODES)
    deepfm = costs(cluster=replace(CLUSTER, nodes=tight))
    stages = [deepfm.statistics("statistics-mlp")]
    with pytest.raises(OptionError, match=r"32 nodes \(10.0.0.1, 10.0.0.2, …\) have 2.0 GB for it"):
        show(deepfm.plan(stages, output=None), check=True)
    assert "statistics-mlp" in capsys.readouterr().out
