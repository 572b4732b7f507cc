"""Mistakes: one clear line, the right exit code, nothing lost."""

from __future__ import annotations

import math
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import get_type_hints

import pytest
import tyro

from afm_dist.dataset.manifest import Field, FieldKind, Manifest, RowOrder
from afm_dist.errors import OptionError
from afm_dist.runs.run import Run
from afm_dist.training.recipe import preset
from jobs import benchmark, compare, compress, compress_tables, evaluate, export, predict, prepare, train
from jobs.compress import Compress, check, main
from jobs.compress_request import baseline_recipe, recipes
from tests.jobs.commands import fail, run_warm
from tests.jobs.conftest import Compressed, write_clicks
from tests.small_dataset import write_dataset


def prepare_command(source: Path, output: Path) -> list[str]:
    return [
        "jobs/prepare.py",
        *("--source", "tabular", "--input", str(source), "--label", "click", "--output", str(output)),
    ]


def test_missing_input_file_is_named(tmp_path: Path) -> None:
    message = fail(*prepare_command(tmp_path / "absent.csv", tmp_path / "data"), code=1)
    assert "absent.csv" in message


def test_missing_label_column_is_named_with_the_columns_there_are(tmp_path: Path) -> None:
    write_clicks(tmp_path / "clicks.csv", 50, header="clicked")
    message = fail(*prepare_command(tmp_path / "clicks.csv", tmp_path / "data"), code=2)
    assert "click" in message
    assert "clicked" in message


@pytest.mark.ray
def test_labels_other_than_0_and_1_are_refused(tmp_path: Path) -> None:
    write_clicks(tmp_path / "clicks.csv", 50)
    text = (tmp_path / "clicks.csv").read_text()
    lines = [line.replace("0,", "no,", 1).replace("1,", "yes,", 1) for line in text.splitlines()]
    (tmp_path / "clicks.csv").write_text("\n".join(lines))
    message = fail(*prepare_command(tmp_path / "clicks.csv", tmp_path / "data"), code=1)
    assert "label" in message


@pytest.mark.ray
def test_rows_with_too_few_fields_are_named(tmp_path: Path) -> None:
    write_clicks(tmp_path / "clicks.csv", 50)
    with (tmp_path / "clicks.csv").open("a") as file:
        file.write("1,u1,a1\n")
    message = fail(*prepare_command(tmp_path / "clicks.csv", tmp_path / "data"), code=1)
    assert "clicks.csv:52" in message


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--mlp-rank", "401"], "--mlp-rank 401"),
        (["--mlp-rank", "0"], "rank 0"),
        (["--embedding-dim", "17"], "--embedding-dim 17"),
        (["--mlp-rank", "4", "--mlp-energy", "0.9"], "exclude each other"),
        (["--mlp-energy", "1.5"], "1.5"),
        (["--target-bytes", "lots"], "--target-bytes 'lots': no positive number of bytes; write 100MB"),
        (["--target-ratio", "5", "--mlp-rank", "4"], "--target-ratio and --mlp-rank exclude each other"),
        (["--target-ratio", "0.5"], "--target-ratio 0.5"),
        (["--sweep", "--mlp-rank", "4"], "--sweep and --mlp-rank exclude each other"),
        (["--sweep", "--sweep-ranks", "4,401"], "--sweep-ranks 401"),
        (["--sweep", "--sweep-dims", "few"], "--sweep-dims 'few'"),
        (["--seeds", "0,00"], "--seeds '0,00'"),
        (["--sweep", "--sweep-ratios", "1"], "--sweep-ratios 1"),
        (["--sweep", "--sweep-ratios", "500"], "times smaller; ask for less"),
        (["--seeds", "0,9223372036854775808"], "--seeds 9223372036854775808: must lie in 0 to"),
        (["--seeds", "1"], "two or more different seeds"),
        (
            ["--methods", "afm,tucker"],
            "choose from afm, svd, weighted, sequential, int8, int4",
        ),
        (["--methods", "scratch"], "none of them compresses"),
        (["--seeds", "0,1", "--ship", "best"], "--seeds and --ship best exclude each other"),
        (["--ship", "weighted-emb"], "--ship 'weighted-emb': choose from best, smallest, afm-emb, svd-emb"),
        (["--ship", "afm-r2-d1", "--sweep"], "--ship 'afm-r2-d1': choose from best, smallest"),
        (["--methods", "afm", "--sweep"], "--sweep and --methods exclude each other"),
        (["--linear-terms", "absorb", "--stream-check"], "--stream-check and --linear-terms absorb exclude"),
        (["--linear-terms", "absorb", "--embedding-dim", "18"], "larger than the layer's 17"),
        (["--checkpoint", "somewhere"], "--data"),
        (["--data", "somewhere"], "--output"),
        (["--preset", "afm-crito"], "afm-criteo"),
        (["--model", "deepfn"], "deepfm"),
        (["--finetune-learning-rate", "-1"], "--finetune-learning-rate -1.0: must be positive"),
        (["--finetune-epochs", "0"], "--finetune-epochs 0: must be at least 1"),
        (["--finetune-batch-size", "0"], "--finetune-batch-size 0: must be at least 1"),
        (["--seed", "-1"], "--seed -1: must lie in 0 to 9223372036854775807"),
    ],
)
def test_wrong_option_is_named_before_anything_starts(
    options: list[str], expected: str, tmp_path: Path
) -> None:
    output = [] if options[0] == "--data" else ["--output", str(tmp_path / "run")]
    with pytest.raises(OptionError) as caught:
        main(tyro.cli(Compress, args=[*options, *output]))
    assert expected in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--learning-rate", "-1"], "--learning-rate -1.0: must be positive and finite"),
        (["--table-learning-rate", "0"], "--table-learning-rate 0.0: must be positive and finite"),
        (["--l2", "-1"], "--l2 -1.0: must be 0 or more"),
        (["--table-l2", "inf"], "--table-l2 inf: must be 0 or more, and finite"),
        (["--plateau-factor", "2"], "--plateau-factor 2.0: must lie in (0, 1]"),
        (["--clip-norm", "0"], "--clip-norm 0.0: must be positive"),
        (["--evaluations-per-epoch", "0"], "--evaluations-per-epoch 0: must be at least 1"),
        (["--patience", "0"], "--patience 0: must be at least 1"),
        (["--hidden"], "--hidden: names no width"),
        (["--seed", "9223372036854775808"], "--seed 9223372036854775808: must lie in 0 to"),
    ],
)
def test_wrong_option_of_training_is_named(options: list[str], expected: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=f"^{re.escape(expected)}"):
        train.main(tyro.cli(train.Train, args=["--data", "data", "--output", str(tmp_path), *options]))


@pytest.mark.parametrize(
    ("job", "options"),
    [
        (train, "--data PATH --output PATH"),
        (compress, "--data PATH --checkpoint PATH --output PATH"),
        (compress, "--output PATH --seeds 0,1"),
        (compress_tables, "--embedding-dim 2 --data PATH --checkpoint PATH --output PATH"),
        (evaluate, "--data PATH --checkpoint PATH --baseline PATH --json PATH"),
        (export, "--format onnx --checkpoint PATH --output PATH --data PATH"),
        (predict, "--checkpoint PATH --input PATH --output PATH --data PATH"),
        (prepare, "--source criteo --input PATH --output PATH --describe PATH"),
        (compare, "one two --output PATH"),
        (benchmark, "metrics --json PATH"),
    ],
)
def test_an_empty_path_is_refused_by_its_option(
    job: ModuleType, options: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = options.split()
    for place in (index for index, word in enumerate(words) if word == "PATH"):
        given = ["" if index == place else word for index, word in enumerate(words)]
        with pytest.raises(OptionError, match=f"^{words[place - 1]}: empty; give a path or a URI$"):
            job.main(tyro.cli(_config_of(job), args=given))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--embedding-dim", "0"], "--embedding-dim 0: must be at least 1"),
        (["--hidden", "0", "4"], "--hidden 0 4: must be at least 1"),
        (["--dropout", "nan"], "--dropout nan: a probability lies in [0, 1); try 0.2"),
        (["--dropout", "1"], "--dropout 1.0: a probability lies in [0, 1)"),
    ],
)
def test_a_shape_that_cannot_be_is_named_by_its_option_in_a_dry_run_too(
    options: list[str], expected: str, dataset: Manifest, tmp_path: Path
) -> None:
    common = ["--data", dataset.location, "--output", str(tmp_path / "run"), "--dry-run"]
    with pytest.raises(OptionError, match=f"^{re.escape(expected)}"):
        train.main(tyro.cli(train.Train, args=[*common, *options]))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--patience", "4"], "--patience 4 is ignored: the evaluations are 4"),
        (["--patience", "3"], "the evaluations are 4, and the first is the best so far"),
        (["--patience", "2"], ""),
        (["--epochs", "2", "--patience", "6"], ""),
        (["--reset-tables"], "--reset-tables is ignored: there is one epoch"),
        (["--reset-tables", "--epochs", "2", "--patience", "2"], "--patience 2 is ignored"),
        (
            ["--reset-tables", "--epochs", "2", "--evaluations-per-epoch", "2"],
            "--evaluations-per-epoch is ignored: --reset-tables is given",
        ),
        (["--evaluations-per-epoch", "2", "--plateau-factor", "0.1"], "--plateau-factor is ignored"),
        (["--evaluations-per-epoch", "3", "--plateau-factor", "0.1"], ""),
    ],
)
def test_option_of_training_without_effect_is_warned_of(
    options: list[str], expected: str, dataset: Manifest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--data", dataset.location, "--output", str(tmp_path / "run"), "--dry-run"]
    train.main(tyro.cli(train.Train, args=[*common, *options]))

    warned = " ".join(capsys.readouterr().err.split())
    assert expected in warned
    assert warned.count("is ignored") == (1 if expected else 0)


@pytest.mark.parametrize(
    ("kinds", "model", "expected"),
    [
        (("numeric", "numeric"), "deepfm", "the dataset has no categorical field"),
        (("categorical", "numeric"), "fibinet", "one categorical field has no partner to interact with"),
    ],
)
def test_a_dataset_that_a_model_cannot_be_of_is_refused_by_the_job(
    kinds: tuple[FieldKind, ...], model: str, expected: str, tmp_path: Path
) -> None:
    fields = [Field(name=f"f{i}", kind=kind, cardinality=30) for i, kind in enumerate(kinds)]
    write_dataset(tmp_path / "data", fields=tuple(fields))

    with pytest.raises(OptionError, match=f"^--model {model}: {expected}"):
        train.main(train.Train(data=str(tmp_path / "data"), output=str(tmp_path / "run"), model=model))
    assert not (tmp_path / "run").exists()


def test_wrong_option_ends_a_job_with_one_line_and_2() -> None:
    assert "--mlp-rank 401" in fail("jobs/compress.py", "--mlp-rank", "401", code=2)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("mlp_energy", math.nan),
        ("kappa", -1.0),
        ("kappa", math.inf),
        ("target_bytes", "0"),
        ("target_bytes", ""),
        ("target_bytes", "-5MB"),
        ("distill", 1.0),
        ("distill", -0.5),
        ("distill_temperature", 0.0),
        ("distill_temperature", math.inf),
        ("finetune_patience", 0),
    ],
)
def test_impossible_value_is_refused_before_anything_starts(option: str, value: float | str) -> None:
    with pytest.raises(OptionError, match=f"--{option.replace('_', '-')}[: ]"):
        check(Compress(**{"data": "somewhere", "output": "elsewhere", option: value}))


@pytest.mark.parametrize("distill", [None, 0.0])
def test_a_temperature_without_distillation_is_warned_of(
    distill: float | None, capsys: pytest.CaptureFixture[str]
) -> None:
    check(Compress(data="somewhere", output="elsewhere", distill=distill, distill_temperature=2.0))

    assert "--distill-temperature is ignored: nothing is distilled without --distill" in " ".join(
        capsys.readouterr().err.split()
    )


def test_both_rounds_are_fine_tuned_as_the_options_say() -> None:
    config = Compress(
        finetune_weights="dense",
        finetune_average=True,
        finetune_patience=2,
        distill=0.5,
        distill_temperature=2,
    )

    for recipe in recipes(config, preset("default")):
        assert (recipe.trained, recipe.average, recipe.patience) == ("dense", True, 2)
        assert (recipe.distill_weight, recipe.distill_temperature) == (0.5, 2)
    baseline = baseline_recipe(config, preset("default"))
    assert (baseline.trained, baseline.average, baseline.distill_weight) == ("all", False, 0)


def test_output_with_a_run_of_another_job_is_refused_and_kept(compressed: Compressed) -> None:
    checkpoint = Path(compressed.trained, "checkpoint", "model.safetensors")
    before = checkpoint.read_bytes()
    command = [compressed.trained if word == compressed.output else word for word in compressed.command]
    assert "a run of the job train" in fail(*command, code=2)
    assert checkpoint.read_bytes() == before


def test_output_that_is_the_dataset_is_refused_and_kept(compressed: Compressed) -> None:
    message = fail("jobs/train.py", "--data", compressed.data, "--output", compressed.data, code=2)
    assert f"--output {compressed.data}: the folder holds other files" in message
    assert list(Path(compressed.data, "train").glob("*.parquet"))


@pytest.mark.parametrize(
    ("job", "options", "wanted"),
    [
        (train, "--output DATA", "other files"),
        (compress, "--output DATA", "other files"),
        (compress, "--output DATA --seeds 0,1", "other files"),
        (compress, "--output RUNS --seeds 0,1", "RUNS/seed-1: the folder holds other files"),
        (compress_tables, "--checkpoint absent --embedding-dim 2 --output DATA", "other files"),
        (prepare, "--source synthetic --output RUN", "other files"),
        (prepare, "--source criteo --input LOG --output RUN", "other files"),
        (prepare, "--source criteo --input DATA/train --output DATA", "holds the input"),
    ],
)
def test_a_dry_run_refuses_the_folder_that_the_job_would_refuse(
    job: ModuleType, options: str, wanted: str, dataset: Manifest, tmp_path: Path
) -> None:
    write_clicks(tmp_path / "log", 50)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text('{"job": "train"}')
    Run(str(tmp_path / "runs"), job="compress", config={})
    (tmp_path / "runs" / "seed-1").mkdir()
    (tmp_path / "runs" / "seed-1" / "notes").write_text("mine")
    places = {"DATA": dataset.location, "LOG": str(tmp_path / "log"), "RUN": str(tmp_path / "run")}
    places["RUNS"] = f"{places['RUN']}s"
    data = "" if job is prepare else "--data DATA"
    words = re.sub("DATA|LOG|RUNS?", lambda found: places[found[0]], f"--dry-run {data} {options}").split()
    before = _names(tmp_path, Path(dataset.location))

    with pytest.raises(OptionError, match=re.sub("RUNS", places["RUNS"], wanted)) as caught:
        job.main(tyro.cli(_config_of(job), args=words))
    assert str(caught.value).startswith("--output ")
    assert _names(tmp_path, Path(dataset.location)) == before


def _config_of(job: ModuleType) -> type:
    kind: type = get_type_hints(job.main)["config"]
    return kind


def _names(*folders: Path) -> set[Path]:
    return {path for folder in folders for path in folder.rglob("*")}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--mlp-rank", "200"], ["--mlp-rank 200: does not make the 400x400 layer mlp.3 smaller; below 200"]),
        (["--embedding-dim", "16"], ["--embedding-dim 16: does not make the embeddings of 16 dimensions"]),
        (["--linear-terms", "absorb", "--embedding-dim", "17"], ["--embedding-dim 17:"]),
        (["--mlp-rank", "199", "--embedding-dim", "15"], []),
        (["--linear-terms", "absorb", "--embedding-dim", "16"], []),
        (["--codes", "bfloat16", "--embedding-dim", "16"], []),
        (["--mlp-energy", "1"], []),
    ],
)
def test_a_rank_that_saves_nothing_is_warned_of_in_a_dry_run_too(
    options: list[str], expected: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(tyro.cli(Compress, args=["--output", str(tmp_path / "run"), "--dry-run", *options]))

    warned = capsys.readouterr().err.splitlines()
    assert len(warned) == len(expected), warned
    assert all(text in line for text, line in zip(expected, warned, strict=True)), warned


def test_compressed_checkpoint_is_not_compressed_again(compressed: Compressed, tmp_path: Path) -> None:
    message = fail(
        "jobs/compress.py",
        *("--data", compressed.data, "--checkpoint", f"{compressed.output}/checkpoint"),
        *("--output", str(tmp_path / "run"), "--mlp-rank", "4", "--embedding-dim", "2"),
        code=2,
    )
    assert "compressed already" in message


def test_unknown_option_exits_2() -> None:
    assert run_warm("jobs/compress.py", "--no-such-option", "1").returncode == 2


def test_relative_path_under_job_submit_is_explained(tmp_path: Path) -> None:
    result = run_warm(
        "jobs/compress.py", "--data", "data", "--output", str(tmp_path), RAY_JOB_CONFIG_JSON_ENV_VAR="{}"
    )
    assert result.returncode == 2
    assert "--data data: relative path under 'ray job submit'" in result.stderr


def test_folder_that_is_no_dataset_is_named(tmp_path: Path) -> None:
    message = fail("jobs/train.py", "--data", str(tmp_path), "--output", str(tmp_path / "run"), code=1)
    assert "not a dataset directory" in message
    assert "prepare" in message


@pytest.mark.ray
def test_truncated_shard_is_refused_by_name(compressed: Compressed, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(compressed.data, data)
    shard = data / "test" / "part-00000.parquet"
    content = shard.read_bytes()
    shard.write_bytes(content[:-10])
    command = [
        "jobs/evaluate.py",
        *("--data", str(data), "--checkpoint", f"{compressed.trained}/checkpoint"),
    ]
    message = fail(*command, code=1)
    assert "part-00000.parquet" in message
    assert "truncated" in message


@pytest.mark.ray
def test_checkpoint_of_another_schema_is_refused_by_field(compressed: Compressed, dataset: Manifest) -> None:
    message = fail(
        "jobs/evaluate.py",
        *("--data", dataset.location, "--checkpoint", f"{compressed.trained}/checkpoint"),
        code=1,
    )
    assert "another schema" in message
    assert "field" in message


def test_dry_run_starts_nothing(tmp_path: Path) -> None:
    result = run_warm("jobs/compress.py", "--dry-run", "--output", str(tmp_path / "run"))
    assert result.returncode == 0
    assert not (tmp_path / "run").exists()


def test_option_without_effect_is_warned_of(capsys: pytest.CaptureFixture[str]) -> None:
    result = run_warm("jobs/compress.py", "--dry-run", "--activation", "none", "--kappa", "3")
    assert result.returncode == 0
    # The demo compares all modes, among them the shifted one.
    assert "--kappa is ignored" not in result.stderr
    check(Compress(activation="none", kappa=3.0, ablation="off"))
    assert "warning: --kappa is ignored: --activation is none" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("row_order", ["log", "shuffled"])
@pytest.mark.parametrize("job", ["train", "compress"])
def test_a_dataset_in_the_order_of_the_log_is_warned_of_with_what_to_do(
    tmp_path: Path, job: str, row_order: RowOrder
) -> None:
    replace(write_dataset(tmp_path / "data"), row_order=row_order).save()
    result = run_warm(
        *(f"jobs/{job}.py", "--data", str(tmp_path / "data"), "--output", str(tmp_path / "run"), "--dry-run")
    )
    assert result.returncode == 0, result.stderr
    warned = [
        line for line in " ".join(result.stderr.split()).split("warning: ") if "order of the log" in line
    ]
    assert len(warned) == (row_order == "log")
    assert all("prepare the data again" in line for line in warned)
