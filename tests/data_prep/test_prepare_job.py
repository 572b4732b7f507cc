from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import ray
import tyro

from afm_dist.dataset.manifest import Manifest
from afm_dist.runtime import console
from jobs import prepare

SYNTHETIC = ("--source", "synthetic")
REPOSITORY = Path(__file__).parents[2]


def _run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["prepare.py", *arguments])
    with pytest.raises(SystemExit) as caught:
        console.run_job(prepare.Prepare, prepare.main, "")
    code = caught.value.code
    assert isinstance(code, int)
    return code


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "clicks.csv"
    rows = "".join(f"{i % 4 == 0:d},{i % 7},{i / 8}\n" for i in range(400))
    path.write_text("click,ad,price\n" + rows)
    return path


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "init", lambda **_: pytest.fail("started Ray"))


@pytest.mark.ray
def test_a_table_becomes_a_dataset_that_can_be_described(
    local_ray: None,
    table: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = str(tmp_path / "data")

    code = _run(
        monkeypatch, "--source", "tabular", "--input", str(table), "--label", "click", "--output", output
    )
    shown = capsys.readouterr().out
    described = _run(monkeypatch, "--describe", output)
    description = capsys.readouterr().out

    assert (code, described) == (0, 0)
    assert "price: numeric (inferred: decimal numbers)" in shown
    assert [f.name for f in Manifest.load(output).fields] == ["ad", "price"]
    assert ["ad", "8", "7", "100", "0"] in [line.split()[:5] for line in description.splitlines()]
    for printed in (shown, description):
        assert "(threshold 2), 1 numeric field; 0 of 400 rows rejected" in printed
        assert f"as a page: {output}/describe.html" in printed


@pytest.mark.ray
def test_a_synthetic_log_becomes_a_dataset_that_knows_its_best_auc(
    local_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = str(tmp_path / "data")

    code = _run(monkeypatch, "--source", "synthetic", "--rows", "5000", "--output", output)

    facts = Manifest.load(output).facts
    assert code == 0
    assert 0.7 < facts["bayes_auc"] < 0.9
    assert facts["rows_read"] == 5000
    assert f"{facts['bayes_auc']:.4f}" in capsys.readouterr().out
    code = _run(monkeypatch, "--source", "synthetic", "--rows", "5000", "--output", output)
    assert "up to date" in capsys.readouterr().out


@pytest.mark.ray
def test_a_synthetic_log_can_have_the_shape_of_avazu(
    local_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = str(tmp_path / "data")

    synthetic = ("--source", "synthetic", "--shape", "avazu", "--rows", "5000")
    assert _run(monkeypatch, *synthetic, "--output", output) == 0

    manifest = Manifest.load(output)
    assert manifest.label == "click"
    assert {"hour", "site_id", "C21"} <= {f.name for f in manifest.fields}
    assert manifest.facts["synthetic"]["shape"] == "avazu"
    assert 0.65 < manifest.facts["bayes_auc"] < 0.9


def test_a_dry_run_says_what_it_would_do_and_does_nothing(
    no_ray: None,
    table: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "data"
    options = ["--output", str(output), "--dry-run"]

    assert _run(monkeypatch, "--source", "synthetic", *options) == 0
    assert "a raw log of 400,000 rows" in capsys.readouterr().out
    assert _run(monkeypatch, "--source", "tabular", "--input", str(table), "--label", "click", *options) == 0
    assert "about 401 rows" in capsys.readouterr().out
    assert not output.exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--output", "OUT"], 2, "--source: say what the raw log is: criteo, avazu or tabular"),
        (["--output", "OUT", "--input", "x"], 2, "--source: say what the raw log is"),
        ([*SYNTHETIC, "--output", "OUT", "--input", "x"], 2, "--input: a synthetic log is written, not read"),
        (["--source", "criteo", "--output", "OUT"], 2, "--input: name the file"),
        (
            [*SYNTHETIC, "--output", "OUT", "--rows", "0", "--dry-run"],
            2,
            "--rows 0: a log needs",
        ),
        ([*SYNTHETIC, "--output", "OUT", "--seed", "-3", "--dry-run"], 2, "--seed -3: must lie in 0 to"),
        (["--rows", "10"], 2, "--output: name the dataset directory"),
        ([*SYNTHETIC, "--output", "OUT", "--threshold", "0"], 2, "--threshold 0"),
        (["--source", "criteo", "--input", "absent.txt", "--output", "OUT"], 1, "absent.txt: no such file"),
        (["--source", "tabular", "--input", "TABLE", "--output", "OUT"], 2, "it has: click, ad, price"),
        (["--describe", "OUT"], 1, "not a dataset directory"),
    ],
)
def test_a_mistake_ends_in_one_line_and_an_exit_code(
    no_ray: None,
    table: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    places = {"OUT": str(tmp_path / "data"), "TABLE": str(table)}

    assert _run(monkeypatch, *(places.get(argument, argument) for argument in arguments)) == code

    shown = capsys.readouterr().err.strip()
    assert message in shown
    assert "\n" not in shown
    assert not (tmp_path / "data").exists()


@pytest.mark.ray
@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
def test_a_synthetic_log_does_not_replace_a_real_one(
    local_ray: None,
    table: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    dry: tuple[str, ...],
) -> None:
    output = str(tmp_path / "data")
    real = ("--source", "tabular", "--input", str(table), "--label", "click", "--output", output)
    assert _run(monkeypatch, *real) == 0
    before = {path: path.read_bytes() for path in (tmp_path / "data").rglob("*") if path.is_file()}
    capsys.readouterr()

    assert _run(monkeypatch, "--output", output, *dry) == 2
    assert _run(monkeypatch, "--source", "synthetic", "--rows", "500", "--output", output, *dry) == 2

    printed = capsys.readouterr().err
    assert "--source: say what the raw log is" in printed
    assert "400 rows of tabular" in printed and "--overwrite" in printed
    assert {p: p.read_bytes() for p in (tmp_path / "data").rglob("*") if p.is_file()} == before


def test_a_preset_for_one_log_names_the_source(
    no_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = str(tmp_path / "data")

    assert _run(monkeypatch, "--preset", "criteo-x4", "--output", output) == 2
    assert "--input: name the files that --source criteo reads" in capsys.readouterr().err
    assert _run(monkeypatch, "--preset", "default", "--output", output) == 2
    assert "--source: say what" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("source", "options", "ignored"),
    [
        ("tabular", ("--label", "click", "--rows", "10"), ["rows"]),
        ("criteo", ("--label", "click", "--rows", "10", "--drop", "C1"), ["rows", "label", "drop"]),
        ("synthetic", ("--label", "click", "--rows", "10"), ["label"]),
        ("tabular", ("--label", "click", "--drop", "ad"), []),
    ],
)
def test_options_that_are_ignored_are_warned_of(
    capsys: pytest.CaptureFixture[str], source: str, options: tuple[str, ...], ignored: list[str]
) -> None:
    given = () if source == "synthetic" else ("--input", "clicks.csv")
    config = tyro.cli(prepare.Prepare, args=["--output", "data", *given, *options])

    prepare.check(config, source)

    assert re.findall(r"--(\w+) is ignored", capsys.readouterr().err) == ignored


def test_relative_paths_are_refused_under_job_submit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")

    assert _run(monkeypatch, "--output", "data") == 2

    assert "--output data: relative path" in capsys.readouterr().err


def test_help_names_every_option() -> None:
    result = subprocess.run(
        [sys.executable, "jobs/prepare.py", "--help"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )

    for name in {*prepare.Prepare.__dataclass_fields__, "task_cpus"} - {"resources"}:
        assert f"--{name.replace('_', '-')}" in result.stdout
