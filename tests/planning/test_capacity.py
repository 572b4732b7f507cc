from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from afm_dist.errors import OptionError
from afm_dist.planning import capacity
from afm_dist.planning.capacity import Estimate, JobPlan, admit, problems
from afm_dist.runtime.resources import THIS_MACHINE, Cluster, Node, TaskResources, TrainingResources

GB = 10**9
BIG = Node(name="10.0.0.1", cpus=16, memory=64 * GB, object_store=20 * GB)
LITTLE = Node(name="10.0.0.2", cpus=16, memory=8 * GB, object_store=20 * GB)
HEAD = Node(name="10.0.0.9", cpus=0, memory=16 * GB, object_store=20 * GB, driver=True)

PASS = Estimate(stage="statistics-mlp", place="tasks", tasks=256, memory=GB, driver=3 * GB)
ROUND = Estimate(stage="train", place="training", memory=12 * GB, driver=8 * GB)


def plan(*estimates: Estimate, nodes: tuple[Node, ...] = (BIG,), **other: Any) -> JobPlan:
    cluster = Cluster(nodes=nodes, where="the cluster at 10.0.0.9:6379")
    return replace(JobPlan(estimates=estimates, cluster=cluster, tasks=TaskResources()), **other)


def test_what_fits_is_admitted_in_silence(capsys: pytest.CaptureFixture[str]) -> None:
    trained = TrainingResources(workers=4, cpus=4)
    admit(plan(PASS, ROUND, nodes=(BIG, HEAD), training=trained, object_store=2 * GB), check=True)
    assert capsys.readouterr() == ("", "")


def test_more_tasks_than_a_node_has_memory_for_are_refused_with_the_share_that_works() -> None:
    (problem,) = problems(plan(PASS, nodes=(BIG, LITTLE)))
    assert problem == (
        "memory: statistics-mlp runs 16 tasks of 1.0 GB at once on 10.0.0.2, where 8.0 GB are free for them; "
        "--task-cpus 2 runs 8 at once there"
    )
    assert problems(plan(PASS, nodes=(BIG, LITTLE), tasks=TaskResources(cpus=2))) == []


def test_fewer_groups_than_cpus_take_less_memory() -> None:
    assert problems(plan(replace(PASS, tasks=8), nodes=(LITTLE,))) == []


def test_a_task_that_fits_nowhere_needs_larger_nodes() -> None:
    (problem,) = problems(plan(replace(PASS, memory=9 * GB), nodes=(LITTLE,)))
    assert problem.endswith("use nodes with more memory")


def test_the_driver_takes_its_share_of_its_node() -> None:
    local = replace(LITTLE, cpus=6, driver=True)
    assert problems(plan(PASS, nodes=(replace(local, driver=False),))) == []
    (problem,) = problems(plan(PASS, nodes=(local,)))
    assert "where 5.0 GB are free for them; --task-cpus 1.2 runs 5 at once there" in problem


def test_a_driver_that_does_not_fit_the_head_is_refused() -> None:
    (problem,) = problems(plan(replace(PASS, driver=20 * GB), nodes=(BIG, HEAD)))
    assert problem == (
        "memory: statistics-mlp takes 20.0 GB of the driver on 10.0.0.9, where 16.0 GB are free; "
        "run the driver on a machine with more"
    )


def test_training_workers_may_all_come_to_one_node() -> None:
    workers = TrainingResources(workers=8, cpus=2)
    (problem,) = problems(plan(ROUND, nodes=(BIG,), training=workers))
    assert problem.startswith("memory: train runs 8 training workers of 12.0 GB on 10.0.0.1")
    assert problems(plan(ROUND, nodes=(BIG,), training=replace(workers, workers=5))) == []


def test_every_node_must_hold_the_model_the_head_too() -> None:
    small = replace(HEAD, object_store=2 * GB)
    (problem,) = problems(plan(PASS, nodes=(BIG, small), object_store=3 * GB))
    assert problem == (
        "object store: the model takes 3.0 GB on every node, 10.0.0.9 has 2.0 GB for it; "
        "start Ray there with --object-store-memory 6000000000"
    )


def test_this_machine_is_told_how_its_container_gets_more() -> None:
    here = Cluster(nodes=(replace(BIG, name=THIS_MACHINE, object_store=GB),), where=THIS_MACHINE)
    (problem,) = problems(plan(PASS, cluster=here, object_store=2 * GB))
    assert "start the container with --shm-size=4000000000" in problem


def test_a_run_directory_larger_than_its_disk_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capacity, "free_disk", lambda output: 5 * GB)
    output = str(tmp_path / "run")
    (problem,) = problems(plan(replace(PASS, disk=6 * GB), output=output))
    assert problem.startswith(f"disk: the run directory takes 6.0 GB, {output} has 5.0 GB free")


def test_the_disk_of_a_directory_that_is_not_there_yet_is_known(tmp_path: Path) -> None:
    assert capacity.free_disk(str(tmp_path / "a" / "b")) == pytest.approx(
        capacity.free_disk(str(tmp_path)), rel=0.01
    )
    assert capacity.free_disk("s3://bucket/run") is None


def test_finished_stages_take_nothing_more(tmp_path: Path) -> None:
    (tmp_path / "statistics-mlp").mkdir()
    (tmp_path / "statistics-mlp" / "_SUCCESS").touch()
    requested = plan(PASS, ROUND, nodes=(LITTLE,), object_store=40 * GB, output=str(tmp_path))
    assert requested.left().estimates == (ROUND,)
    assert problems(replace(requested.left(), estimates=())) == []


def test_a_refusal_names_every_problem_and_the_way_around() -> None:
    requested = plan(PASS, nodes=(LITTLE,), object_store=40 * GB)
    with pytest.raises(OptionError) as refused:
        admit(requested, check=True)
    message = str(refused.value)
    assert message.startswith("the cluster at 10.0.0.9:6379 cannot hold this plan: object store: ")
    assert "; memory: " in message
    assert message.endswith("; --no-capacity-check starts it all the same")


def test_without_the_check_it_is_only_warned_of(capsys: pytest.CaptureFixture[str]) -> None:
    admit(plan(PASS, nodes=(LITTLE,)), check=False)
    assert "warning: the cluster at 10.0.0.9:6379 cannot hold this plan: memory:" in capsys.readouterr().err
