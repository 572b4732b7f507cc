"""Every command and every program of the README runs."""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
from pathlib import Path

import pytest
import torch
import tyro

from afm_dist.checkpoint.config import ModelConfig
from afm_dist.checkpoint.pretrained import save_pretrained
from afm_dist.export.export import check_format
from afm_dist.models import ARCHITECTURES
from data_prep import presets
from jobs.benchmark import Benchmark
from jobs.compare import Compare
from jobs.compare import main as compare
from jobs.compress_options import Compress
from jobs.compress_tables import CompressTables
from jobs.evaluate import Evaluate
from jobs.export import Export
from jobs.predict import Predict
from jobs.prepare import Prepare
from jobs.train import Train
from tests.data_prep.raw_logs import criteo_text
from tests.jobs.commands import ROOT, run
from tests.models.small_models import FIELDS, SHAPES, inputs, small_model
from tests.report.example_runs import example_run, write_run

JOBS = {
    "benchmark": Benchmark,
    "compare": Compare,
    "compress": Compress,
    "compress_tables": CompressTables,
    "evaluate": Evaluate,
    "export": Export,
    "predict": Predict,
    "prepare": Prepare,
    "train": Train,
}
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_make_targets_of_the_readme_exist_and_ci_runs_them() -> None:
    targets = re.findall(r"^make (\w+)$", "\n".join(blocks("sh")), re.MULTILINE)
    assert targets == ["demo", "test"]
    makefile, ci = (ROOT / "Makefile").read_text(), (ROOT / ".ci" / "run").read_text()
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)
        assert f"make {target}" in ci


def test_program_for_your_own_model_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (program,) = blocks("python")
    monkeypatch.chdir(tmp_path)
    exec(compile(program, "README.md", "exec"), {})
    rank, error = re.match(r"(\d+) tensor\((\S+),", capsys.readouterr().out).groups()
    assert int(rank) < 128  # from there on two layers are no smaller than one
    assert float(error) < 0.06
    assert (tmp_path / "compressed" / "model.safetensors").exists()


def options_of(job: str) -> set[str]:
    """The options of a job, from what its command line is made of."""
    fields = [
        field
        for each in dataclasses.fields(JOBS[job])
        for field in (dataclasses.fields(each.default) if dataclasses.is_dataclass(each.default) else [each])
    ]
    return {f"--{field.name.replace('_', '-')}" for field in fields}


def options_in(text: str) -> set[str]:
    """The options that a text names in its code."""
    return {option for code in re.findall(r"`([^`]+)`", text) for option in re.findall(r"--[a-z0-9-]+", code)}


def tables_of_options() -> dict[str, str]:
    """By job, the table that says which of its options does what."""
    found = re.findall(r"^\| you want \| option of `jobs/(\w+)\.py` \|\n((?:\|.*\n)+)", README, re.MULTILINE)
    return dict(found)


def prose_of(section: str) -> str:
    """A section without its tables and programs."""
    (text,) = re.findall(rf"^## {section}\n(.*?)(?=^## |\Z)", README, re.DOTALL | re.MULTILINE)
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    return re.sub(r"^\|.*\n", "", text, flags=re.MULTILINE)


def test_options_of_a_table_are_those_of_its_job() -> None:
    tables = tables_of_options()

    assert set(tables) == {"compress", "train"}
    for job, table in tables.items():
        assert options_in(table) <= options_of(job), job


@pytest.mark.parametrize(
    ("section", "jobs"),
    [
        ("Your own data", ("prepare", "train")),
        ("Scoring raw rows", ("predict",)),
        ("Large logs", ("prepare",)),
        ("Comparing runs", ("compare",)),
        ("Files for serving", ("export",)),
        ("On a cluster", ("compress",)),
        ("How it works", ("compress",)),
    ],
)
def test_options_of_a_section_are_those_of_its_jobs(section: str, jobs: tuple[str, ...]) -> None:
    named = options_in(prose_of(section)) - {"--help"}

    assert named
    assert named <= set().union(*map(options_of, jobs))


def test_options_that_training_shares_with_compression_are_named() -> None:
    (sentence,) = re.findall(r"Of these `jobs/train.py` shares(.*?);", README, re.DOTALL)

    assert options_in(sentence) == options_in(tables_of_options()["compress"]) & options_of("train")


def test_jobs_that_have_a_dry_run_are_named() -> None:
    (sentence,) = re.findall(r"Every job has `--help`\.(.*?) have `--dry-run`", README, re.DOTALL)

    assert set(re.findall(r"`(\w+)\.py`", sentence)) == {
        job for job in JOBS if "--dry-run" in options_of(job)
    }
    # A job is what calls run_job.
    sources = {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / "jobs").glob("*.py")}
    assert set(JOBS) == {name for name, source in sources.items() if "run_job(" in source}


def test_command_that_compares_runs_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = [block for block in blocks("sh") if "compare.py" in block]
    _, job, *arguments = shlex.split(block)
    assert job == "jobs/compare.py"
    for word in arguments[:2]:
        write_run(example_run(word), tmp_path / word)
    monkeypatch.chdir(tmp_path)

    compare(tyro.cli(Compare, args=arguments))

    assert (tmp_path / "compare" / "report" / "report.html").exists()


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_command_for_a_large_log_runs(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text(criteo_text(2_000))
    (block,) = [block for block in blocks("sh") if "train.txt" in block]
    program, job, *arguments = shlex.split(block)
    assert program == "python"
    placed = [
        str(tmp_path / word) if word == "train.txt" or word.startswith("data/") else word
        for word in arguments
    ]

    result = run(job, *placed)

    assert result.returncode == 0, result.stdout + result.stderr
    assert "39 categorical fields" in result.stdout


def test_program_that_serves_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (program,) = [block for block in blocks("py") if "prepare_for_inference" in block]
    model = small_model("deepfm")
    config = ModelConfig(architecture="deepfm", hyper_parameters=SHAPES["deepfm"], fields=FIELDS)
    save_pretrained(model, str(tmp_path / "runs" / "compressed" / "checkpoint"), config=config)
    monkeypatch.chdir(tmp_path)
    ids, numeric = inputs(5)
    variables = {"ids": ids, "numeric": numeric}
    exec(compile(program, "README.md", "exec"), variables)
    torch.testing.assert_close(variables["logits"], model(ids, numeric).detach(), rtol=0.02, atol=0.02)


def test_commands_that_export_are_understood() -> None:
    (block,) = [block for block in blocks("sh") if "jobs/export.py" in block]
    exports = []
    for command in block.splitlines():
        program, job, *arguments = shlex.split(command)
        assert (program, job) == ("python", "jobs/export.py")
        exports.append(tyro.cli(Export, args=arguments))
    assert {each.format for each in exports} == {"onnx", "torch-export", "aoti"}
    for each in exports:
        check_format(each.format, each.output)


def test_architectures_of_the_readme_are_the_known_ones() -> None:
    (row,) = [line for line in README.splitlines() if line.startswith("| another architecture")]

    assert re.findall(r"`([a-z0-9]+)`", row) == sorted(ARCHITECTURES)


def test_presets_of_the_readme_are_the_named_ones() -> None:
    named = re.findall(r"^\| `([a-z][a-z0-9-]+)` \|", README, re.MULTILINE)

    assert sorted([*named, "default"]) == presets.names()


def test_readme_names_no_missing_file() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if not target.startswith("http"):
            assert os.path.exists(ROOT / target), target  # noqa: PTH110


def test_readme_names_no_missing_section() -> None:
    for file, anchor in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", README):
        text = (ROOT / (file or "README.md")).read_text(encoding="utf-8")
        titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
        anchors = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
        assert anchor in anchors, f"{file}#{anchor}"
