"""Datasets and checkpoints that name files elsewhere: every job refuses them by name, and writes nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from afm_dist import storage
from afm_dist.checkpoint import preprocessing
from afm_dist.checkpoint.config import ModelConfig
from afm_dist.checkpoint.files import tensor_files
from afm_dist.checkpoint.pretrained import from_pretrained, save_pretrained
from afm_dist.dataset.manifest import Manifest
from afm_dist.errors import DataError, OptionError
from afm_dist.large_tables.stored import stored_tensors
from afm_dist.report.finished_run import FinishedRun
from afm_dist.runtime import console
from afm_dist.training.registration import REGISTERED, Registered
from data_prep.parse import BlockReceipt
from data_prep.spool import SpooledPart
from jobs import compress, compress_tables, evaluate, export, predict, train
from tests.checkpoint.test_preprocessing import prepared

SHAPE = {"embedding_dim": 4, "hidden": [8, 8]}
ATTACKS = ("../../stolen", "/etc/hostname", "..\\..\\stolen", "a/../../stolen", "C:\\stolen", "link")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A dataset, a checkpoint trained on it, a row to score, and what lies outside."""
    manifest = prepared(tmp_path / "home" / "data")
    location = str(tmp_path / "home" / "checkpoint")
    config = ModelConfig(architecture="deepfm", hyper_parameters=SHAPE, fields=manifest.fields)
    save_pretrained(config.build(), location, config)
    assert preprocessing.attach(manifest, location)
    (tmp_path / "home" / "rows.csv").write_text("site,ad,age\nsite-1,ad-1,0.5\n")
    # The attacker's file has the content that is promised: no checksum will help.
    shutil.copy(Path(manifest.location, manifest.vocabulary["ad"].path), tmp_path / "home" / "stolen")
    return tmp_path / "home"


def edit(path: Path, change: Callable[[Any], None]) -> None:
    """Change a file, and what vouches for it."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    for folder in path.parents[:2]:
        sums = storage.Checksums.load(str(folder))
        if sums is not None and (name := path.relative_to(folder).as_posix()) in sums.sha256:
            sums.having(name).save()


def tamper(manifest: Path, attack: str, part: str) -> None:
    """Let a manifest name another file: that of a vocabulary, of a shard, or of the model."""

    def change(content: Any) -> None:
        if part == "vocabulary":
            content["vocabulary"]["ad"]["path"] = attack
        elif part == "model":
            content["facts"]["model"][0]["path"] = attack
        else:
            content["splits"][part][0]["path"] = attack

    edit(manifest, change)
    if attack == "link":
        folder = manifest.parents[1] if part == "model" else manifest.parent
        (folder / "link").symlink_to("/etc/hostname")


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("part", ["vocabulary", "train"])
def test_a_manifest_that_names_a_file_elsewhere_is_not_read(home: Path, attack: str, part: str) -> None:
    tamper(home / "data" / "manifest.json", attack, part)

    with pytest.raises(DataError, match=r"data/manifest\.json: damaged") as caught:
        Manifest.load(str(home / "data"))

    assert repr(attack) in str(caught.value)


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("part", ["vocabulary", "model"])
def test_preprocessing_that_names_a_file_elsewhere_is_not_read(home: Path, attack: str, part: str) -> None:
    tamper(home / "checkpoint" / "preprocessing" / "manifest.json", attack, part)

    with pytest.raises(DataError, match=r"preprocessing/manifest\.json: damaged") as caught:
        preprocessing.load(str(home / "checkpoint"))

    assert repr(attack) in str(caught.value)


@pytest.mark.parametrize("attack", [*ATTACKS, "model-00001-of-00002.safetensors"])
@pytest.mark.parametrize("read", [tensor_files, from_pretrained, stored_tensors])
def test_an_index_that_names_a_file_elsewhere_is_not_read(
    home: Path, attack: str, read: Callable[[str], object]
) -> None:
    checkpoint = home / "checkpoint"
    if attack.startswith("model"):
        (checkpoint / "model.safetensors").rename(home / "elsewhere.safetensors")
        (checkpoint / attack).symlink_to("../elsewhere.safetensors")
    elif attack == "link":
        (checkpoint / "link").symlink_to("/etc/hostname")
    storage.write_json(f"{checkpoint}/model.safetensors.index.json", {"weight_map": {"x": attack}})
    sums = storage.Checksums.load(str(checkpoint))
    assert sums is not None
    sums.having("model.safetensors.index.json").save()

    with pytest.raises(DataError, match=r"index\.json: damaged") as caught:
        read(str(checkpoint))

    assert repr(attack) in str(caught.value)


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("key", ["attempt", "checkpoint"])
def test_a_training_goes_on_from_no_checkpoint_elsewhere(tmp_path: Path, attack: str, key: str) -> None:
    good = {"attempt": "attempt-001", "checkpoint": "checkpoint_1"}
    note = {"candidate": "a", "step": 1, "kept_step": 1, "threads": 1, "device": "cpu", "digest": "0"}
    storage.write_sealed_json(str(tmp_path / REGISTERED), {**note, **good, key: attack})
    if attack == "link":
        parent = tmp_path / "ray_train" / ("" if key == "attempt" else "attempt-001")
        parent.mkdir(parents=True)
        (parent / "link").symlink_to("/etc")

    with pytest.raises(DataError, match=r"registered\.json: damaged"):
        Registered.read(str(tmp_path))


@pytest.mark.parametrize("note", [{}, [], {"step": 1}, {"candidate": "a", "colour": 1}])
def test_a_note_of_a_checkpoint_that_is_not_understood_is_refused(tmp_path: Path, note: Any) -> None:
    storage.write_json(str(tmp_path / REGISTERED), note)

    with pytest.raises(DataError, match=r"registered\.json: damaged"):
        Registered.read(str(tmp_path))


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_receipt_names_no_part_elsewhere(tmp_path: Path, attack: str) -> None:
    spool = tmp_path / "spool"
    spool.mkdir()
    (spool / "link").symlink_to("/etc")
    receipt = BlockReceipt(parts=[SpooledPart(path=attack)])

    with pytest.raises(DataError, match=r"block-00000\.json: damaged"):
        receipt.within(str(spool), source="block-00000.json")


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_comparison_reads_no_run_elsewhere(tmp_path: Path, attack: str) -> None:
    run = tmp_path / "run"
    storage.write_json(str(run / "config.json"), {"job": "compress"})
    (run / "link").symlink_to("/etc")

    storage.write_json(str(run / "report" / "_SUCCESS"), {"inputs": {attack: "a"}, "commit": "b"})
    with pytest.raises(DataError, match="_SUCCESS: damaged or tampered with: it names the path"):
        FinishedRun.read(str(run))

    storage.write_json(str(run / "report" / "_SUCCESS"), {"inputs": {}, "commit": "b"})
    storage.write_json(str(run / "report" / "report.json"), {"seeds": [0, attack]})
    with pytest.raises(DataError, match=r"report\.json: damaged"):
        FinishedRun.read(str(run))


def jobs(home: Path) -> Mapping[str, tuple[Callable[[Any], None], Any]]:
    data, checkpoint, output = (str(home / name) for name in ("data", "checkpoint", "output"))
    return {
        "train": (train.main, train.Train(data=data, output=output)),
        "compress": (
            compress.main,
            compress.Compress(data=data, checkpoint=checkpoint, output=output, mlp_rank=4, embedding_dim=2),
        ),
        "compress_tables": (
            compress_tables.main,
            compress_tables.CompressTables(data=data, checkpoint=checkpoint, embedding_dim=2, output=output),
        ),
        "evaluate": (
            evaluate.main,
            evaluate.Evaluate(data=data, checkpoint=checkpoint, split="train", json=output),
        ),
        "export": (
            export.main,
            export.Export(
                format="torch-export", checkpoint=checkpoint, data=data, output=f"{output}/model.pt2"
            ),
        ),
        "predict": (
            predict.main,
            predict.Predict(
                checkpoint=checkpoint, data=data, input=(str(home / "rows.csv"),), output=f"{output}/scores"
            ),
        ),
    }


@pytest.mark.parametrize("job", ["train", "compress", "compress_tables", "evaluate", "export", "predict"])
@pytest.mark.parametrize("attack", ["../../stolen", "link"])
def test_no_job_takes_a_dataset_that_names_a_file_elsewhere(home: Path, job: str, attack: str) -> None:
    tamper(home / "data" / "manifest.json", attack, "vocabulary")
    before = everything(home)
    main, config = jobs(home)[job]

    with pytest.raises(DataError, match=r"data/manifest\.json: damaged"):
        main(config)

    assert everything(home) == before
    assert not (home / "output").exists()


@pytest.mark.parametrize("job", ["export", "predict"])
@pytest.mark.parametrize("attack", ["../../stolen", "/etc/hostname"])
def test_no_job_takes_a_checkpoint_that_names_a_file_elsewhere(home: Path, job: str, attack: str) -> None:
    tamper(home / "checkpoint" / "preprocessing" / "manifest.json", attack, "vocabulary")
    before = everything(home)
    main, config = jobs(home)[job]
    config.data = None

    with pytest.raises(DataError, match=r"preprocessing/manifest\.json: damaged"):
        main(config)

    assert everything(home) == before
    assert not (home / "output").exists()


def test_the_refusal_is_one_line_with_exit_code_1(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tamper(home / "checkpoint" / "preprocessing" / "manifest.json", "../../stolen", "vocabulary")
    arguments = [
        "--format",
        "torch-export",
        "--checkpoint",
        f"{home}/checkpoint",
        "--output",
        f"{home}/m.pt2",
    ]
    monkeypatch.setattr("sys.argv", ["export.py", *arguments])

    with pytest.raises(SystemExit) as ended:
        console.run_job(export.Export, export.main)

    printed = capsys.readouterr().err.strip()
    assert ended.value.code == 1
    assert "'../../stolen'" in printed and len(printed.splitlines()) == 1


@pytest.mark.parametrize("content", ["{}", "my notes", '{"auc": 0.7}', "[]"])
def test_figures_are_written_over_figures_only(home: Path, content: str) -> None:
    (home / "output").write_text(content)
    main, config = jobs(home)["evaluate"]

    with pytest.raises(OptionError, match=r"--json .*output: is there, and holds no figures"):
        main(config)

    assert (home / "output").read_text() == content
