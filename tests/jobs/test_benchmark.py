from __future__ import annotations

import json
import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from afm_dist.errors import OptionError
from jobs.benchmark import Benchmark, check, main
from jobs.benchmarks import inference, inference_models, inference_runtimes
from jobs.benchmarks.criteo_1tb import SOURCES
from jobs.benchmarks.result import Result, rates
from tests.jobs import commands

SCHEMA = {"suite", "name", "value", "unit", "reference", "ratio", "ratio_min", "ratio_max", "runs"}


def run(suite: Any, folder: Path) -> list[dict[str, Any]]:
    output = folder / "figures.json"
    main(Benchmark(suite=suite, quick=True, json=str(output)))
    figures: list[dict[str, Any]] = json.loads(output.read_text(encoding="utf-8"))
    return figures


def check_figures(figures: list[dict[str, Any]], suite: str, *, whole: bool = True) -> None:
    names = [figure["name"] for figure in figures]
    assert len(set(names)) == len(names)
    for figure in figures:
        assert set(figure) == SCHEMA
        assert figure["suite"] == suite
        assert figure["value"] >= 0
        assert figure["runs"] == 1
        if figure["ratio"] is None:
            assert figure["ratio_min"] is None and figure["ratio_max"] is None
        else:
            assert figure["reference"] in names
            assert 0 < figure["ratio_min"] <= figure["ratio"] <= figure["ratio_max"]
    # The page about the terabyte log finds its figures by their names, but for the sizes.
    sought = {sizeless(each.of(1)) for each in SOURCES.values() if each.suite == suite}
    assert not whole or sought <= set(map(sizeless, names))


def sizeless(name: str) -> str:
    return re.sub(r"\d[\de+]*", "#", name)


@pytest.mark.parametrize("suite", ["statistics", "metrics"])
def test_suite_writes_its_figures(suite: str, tmp_path: Path) -> None:
    figures = run(suite, tmp_path)
    check_figures(figures, suite)
    assert any(figure["ratio"] is not None for figure in figures)


def test_inference_is_compared_within_a_runtime(tmp_path: Path) -> None:
    output = tmp_path / "figures.json"
    main(Benchmark(suite="inference", quick=True, runtimes=("eager", "form"), json=str(output)))
    figures = json.loads(output.read_text(encoding="utf-8"))
    check_figures(figures, "inference")
    assert SOURCES["score"].name.startswith(f"Criteo, batch {max(Benchmark(suite='inference').batch_sizes)},")
    references = {figure["name"]: figure["reference"] for figure in figures}
    for runtime in ("eager", "form"):
        case = f"Criteo, batch 100, 1 thread, {runtime}: "
        assert references[f"{case}AFM MLP"] == references[f"{case}AFM EMB"] == f"{case}DeepFM"
        assert references[f"{case}AFM EMB, to its MLP alone"] == f"{case}MLP alone"
    latencies = {figure["name"]: figure["value"] for figure in figures if figure["unit"] == "ms"}
    one = "Criteo, batch 1, 1 thread, form: AFM EMB, "
    assert 0 < latencies[f"{one}p50"] <= latencies[f"{one}p99"]


def test_the_mlp_alone_scores_as_many_rows_as_the_models(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = replace(inference_models.CRITEO, vocabulary=100, hidden=(4, 4, 4), mlp_rank=2)
    models = inference_models.models_of(shape)
    rows = set()
    models["AFM EMB"].mlp.register_forward_hook(lambda mlp, given, logits: rows.add(len(logits)))
    monkeypatch.setattr(inference, "models_of", lambda shape: models)
    monkeypatch.setattr(inference, "BATCHES", 1)

    figures = inference.run(
        shape, batch_sizes=(10_001,), threads=(1,), runtimes=("eager",), precision="float32", rounds=1
    )

    assert "Criteo, batch 10001, 1 thread, eager: MLP alone" in {figure.name for figure in figures}
    assert rows == {10_001}


def test_runtimes_of_which_none_is_installed_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference_runtimes, "find_spec", lambda name: None)
    with pytest.raises(
        OptionError, match=r"--runtimes onnx: .* pip install '\.\[onnx\]' in the clone, or name another"
    ):
        main(Benchmark(suite="inference", quick=True, runtimes=("onnx",)))


@pytest.mark.slow
def test_inference_by_command_runs_everywhere(tmp_path: Path) -> None:
    result = commands.run("jobs/benchmark.py", "inference", "--quick")
    assert (result.returncode, result.stderr) == (0, ""), result.stderr
    assert "onnx: AFM EMB" in result.stdout


@pytest.mark.slow
def test_training_by_command_warns_of_nothing(tmp_path: Path) -> None:
    output = tmp_path / "figures.json"
    result = commands.run("jobs/benchmark.py", "training", "--quick", "--json", str(output))
    assert (result.returncode, result.stderr) == (0, ""), result.stderr
    check_figures(json.loads(output.read_text(encoding="utf-8")), "training")


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_preparation_is_compared_with_parsing(tmp_path: Path) -> None:
    figures = run("prepare", tmp_path)
    check_figures(figures, "prepare")
    references = {figure["name"]: figure["reference"] for figure in figures}
    assert references["prepare, log to shards"] == "Polars parsing alone"
    assert references["peak memory of a worker, 2,000 rows"] == "peak memory of a worker, 200 rows"
    assert references["read shuffled, batch 1000"] == "decode shards, no batches"


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_a_pass_is_compared_with_the_same_loop_without_ray(tmp_path: Path) -> None:
    figures = run("pass", tmp_path)
    check_figures(figures, "pass")
    references = {figure["name"]: figure["reference"] for figure in figures}
    assert references["plain loop, forward and moments"] == "plain loop, forward alone"
    assert references["pass on Ray"] == "plain loop, forward and moments"
    (difference,) = [figure for figure in figures if figure["unit"] == "relative"]
    assert difference["value"] < 1e-6


def test_statistics_of_both_shapes_are_exact_far_from_the_origin(tmp_path: Path) -> None:
    figures = run("statistics", tmp_path)
    errors = {figure["name"]: figure["value"] for figure in figures if figure["unit"] == "relative"}
    assert list(errors) == [f"{shape}: covariance error at 1000 sigma" for shape in ("Criteo", "Avazu")]
    assert all(error < 1e-6 for error in errors.values())


def test_ratio_is_the_median_of_the_rounds() -> None:
    seconds = {"slow": [4.0, 3.0, 8.0], "fast": [2.0, 3.0, 2.0]}
    slow, fast = rates("suite", 12, seconds, "slow")
    assert slow == Result(suite="suite", name="slow", value=3.0, unit="rows/s", runs=3)
    assert (fast.value, fast.reference) == (6.0, "slow")
    assert (fast.ratio, fast.ratio_min, fast.ratio_max) == (2.0, 1.0, 4.0)


def test_schema_is_the_contract() -> None:
    assert {field.name for field in fields(Result)} == SCHEMA


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rounds": 0}, "--rounds 0"),
        ({"hidden": (4, 4)}, "--hidden 4 4"),
        ({"rows": -1}, "--rows -1"),
        ({"batch_sizes": ()}, "--batch-sizes: names none"),
        ({"runtimes": ()}, "--runtimes: names none"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check(Benchmark(suite="training", **options))
