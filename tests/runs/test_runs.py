from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from afm_dist import storage
from afm_dist.errors import OptionError
from afm_dist.runs.run import Resume, Run, Stage, read_success, stage_files


class Pipeline:
    """data -> train -> compress -> report, and evaluate beside compress; counts what is done."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.failing: str | None = None

    def run(self, *, data: str = "d1", rate: float = 0.1, rank: int = 8, resume: Resume = "auto") -> Run:
        run = Run(self.path, job="compress", config={"rate": rate}, resume=resume)
        source = Stage.external("data", "elsewhere", data)
        train = run.stage("train", self.work("train"), config={"rate": rate}, inputs=[source])
        compress = run.stage("compress", self.work("compress"), config={"rank": rank}, inputs=[train])
        run.stage("evaluate", self.work("evaluate"), inputs=[train, source])
        run.stage("report", self.work("report"), inputs=[compress])
        return run

    def work(self, name: str):
        def work(folder: str) -> None:
            path = storage.join(folder, "parts")
            done = storage.read_json(path, object) if storage.exists(path) else []
            storage.write_json(path, [*done, "part"])
            if self.failing == name:
                raise RuntimeError("power cut")

        return work

    def parts(self, name: str) -> list[str]:
        return storage.read_json(f"{self.path}/{name}/parts", object)


ALL = ["train", "compress", "evaluate", "report"]


@pytest.fixture
def pipeline(tmp_path: Path) -> Pipeline:
    return Pipeline(tmp_path / "run")


def test_a_first_run_does_every_stage(pipeline: Pipeline) -> None:
    run = pipeline.run()

    assert (run.redone, run.reused) == (ALL, [])
    assert all(storage.exists(f"{run.path}/{name}/_SUCCESS") for name in ALL)


def test_a_second_run_does_nothing_and_says_so(
    pipeline: Pipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    pipeline.run()
    capsys.readouterr()

    run = pipeline.run()

    assert (run.redone, run.reused) == ([], ALL)
    assert capsys.readouterr().out.splitlines() == [f"[{name}] up to date" for name in ALL]


def test_a_changed_option_redoes_its_stage_and_its_dependents_and_says_which(
    pipeline: Pipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    pipeline.run()
    capsys.readouterr()

    run = pipeline.run(rank=4)

    printed = capsys.readouterr().out
    assert (run.redone, run.reused) == (["compress", "report"], ["train", "evaluate"])
    assert "[compress] running again: rank 8 -> 4" in printed
    assert "[report] running again: its input 'compress' changed" in printed


def test_changed_data_redoes_everything_made_from_it(pipeline: Pipeline) -> None:
    pipeline.run()

    assert pipeline.run(data="d2").redone == ALL


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("how", [flip, Path.unlink, lambda path: path.write_bytes(b"[]")])
def test_a_stage_whose_files_were_altered_is_done_again_and_says_which(
    pipeline: Pipeline, capsys: pytest.CaptureFixture[str], how: Any
) -> None:
    pipeline.run()
    capsys.readouterr()
    how(Path(pipeline.path, "compress", "parts"))

    run = pipeline.run()

    assert (run.redone, run.reused) == (["compress", "report"], ["train", "evaluate"])
    assert f"[compress] running again: {pipeline.path}/compress/parts: " in capsys.readouterr().out
    assert pipeline.parts("compress") == ["part"]
    assert pipeline.run().redone == []


def test_what_another_run_left_in_a_stage_of_the_same_name_is_not_used(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    def stage(path: Path, content: str) -> Run:
        run = Run(str(path), job="compress", config={})
        run.stage(
            "statistics", lambda folder: storage.write_bytes(f"{folder}/moments", content.encode()), config={}
        )
        return run

    stage(tmp_path / "a", "of a")
    stage(tmp_path / "b", "of b")
    (tmp_path / "b" / "statistics" / "moments").replace(tmp_path / "a" / "statistics" / "moments")

    assert stage(tmp_path / "a", "of a").redone == ["statistics"]
    assert (tmp_path / "a" / "statistics" / "moments").read_text() == "of a"


def test_files_that_checksums_vouch_for_are_read_only_when_the_stage_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(folder: str) -> None:
        storage.write_bytes(f"{folder}/model/tensors", b"weights")
        storage.Checksums(folder=f"{folder}/model", sha256={}).having("tensors").save()

    def stage() -> Run:
        run = Run(str(tmp_path), job="compress", config={})
        run.stage("rewrite", work)
        return run

    stage()
    assert list(read_success(str(tmp_path / "rewrite"))["files"]) == ["model/SHA256SUMS"]
    assert stage().redone == []

    flip(tmp_path / "rewrite" / "model" / "tensors")
    assert stage().redone == ["rewrite"]


def test_a_marker_that_was_altered_is_not_believed(pipeline: Pipeline) -> None:
    pipeline.run()
    marker = Path(pipeline.path, "compress", "_SUCCESS")
    for at in range(2, 400, 31):
        content = bytearray(marker.read_bytes())
        content[at] ^= 1
        marker.write_bytes(content)

        assert pipeline.run().redone in ([], ["compress", "report"])
        assert read_success(str(marker.parent))["fingerprint"]
    marker.write_bytes(marker.read_bytes().replace(b'"rank": 8', b'"rank": 9'))

    assert pipeline.run().redone == ["compress", "report"]


def test_a_stage_whose_beginning_was_damaged_starts_anew(pipeline: Pipeline) -> None:
    pipeline.failing = "compress"
    with pytest.raises(RuntimeError):
        pipeline.run()
    pipeline.failing = None
    Path(pipeline.path, "compress", "_STARTED").write_bytes(b"{")

    pipeline.run()

    assert pipeline.parts("compress") == ["part"]


def test_going_back_to_the_old_option_redoes_the_stage(pipeline: Pipeline) -> None:
    pipeline.run()
    pipeline.run(rank=4)

    assert pipeline.run().redone == ["compress", "report"]


@pytest.mark.parametrize(
    ("deleted", "redone"),
    [
        ("train", ALL),
        ("compress", ["compress", "report"]),
        ("evaluate", ["evaluate"]),
        ("report", ["report"]),
    ],
)
def test_deleting_a_marker_redoes_that_stage_and_its_dependents_only(
    pipeline: Pipeline, deleted: str, redone: list[str]
) -> None:
    pipeline.run()
    Path(pipeline.path, deleted, "_SUCCESS").unlink()

    run = pipeline.run()

    assert run.redone == redone
    assert pipeline.parts(deleted) == ["part"]
    assert pipeline.run().redone == []


def test_an_interrupted_stage_goes_on_in_its_folder(
    pipeline: Pipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    pipeline.failing = "compress"
    with pytest.raises(RuntimeError, match="power cut"):
        pipeline.run()
    assert not storage.exists(f"{pipeline.path}/compress/_SUCCESS")
    pipeline.failing = None

    run = pipeline.run()

    assert run.reused == ["train"]
    assert pipeline.parts("compress") == ["part", "part"]
    assert "[compress] going on" in capsys.readouterr().out


def test_an_interrupted_stage_of_another_configuration_starts_anew(pipeline: Pipeline) -> None:
    pipeline.failing = "compress"
    with pytest.raises(RuntimeError):
        pipeline.run()
    pipeline.failing = None

    pipeline.run(rank=4)

    assert pipeline.parts("compress") == ["part"]


def test_an_interrupted_stage_whose_input_was_redone_starts_anew(pipeline: Pipeline) -> None:
    pipeline.failing = "compress"
    with pytest.raises(RuntimeError):
        pipeline.run()
    pipeline.failing = None
    Path(pipeline.path, "train", "_SUCCESS").unlink()

    pipeline.run()

    assert pipeline.parts("compress") == ["part"]


def test_a_redone_stage_does_not_see_its_old_files(pipeline: Pipeline) -> None:
    pipeline.run()

    pipeline.run(rank=4)

    assert pipeline.parts("compress") == ["part"]


def test_resume_never_redoes_everything_from_nothing(pipeline: Pipeline) -> None:
    pipeline.run()

    run = pipeline.run(resume="never")

    assert run.redone == ALL
    assert all(pipeline.parts(name) == ["part"] for name in ALL)


def test_resume_never_starts_an_interrupted_stage_from_nothing(pipeline: Pipeline) -> None:
    pipeline.failing = "compress"
    with pytest.raises(RuntimeError):
        pipeline.run()
    pipeline.failing = None

    pipeline.run(resume="never")

    assert pipeline.parts("compress") == ["part"]


def test_resume_never_does_not_go_on_even_with_the_same_inputs(pipeline: Pipeline) -> None:
    def run(resume: Resume) -> None:
        Run(pipeline.path, job="train", config={}, resume=resume).stage("train", pipeline.work("train"))

    pipeline.failing = "train"
    with pytest.raises(RuntimeError):
        run("auto")
    pipeline.failing = None

    run("never")

    assert pipeline.parts("train") == ["part"]


def test_another_release_redoes_what_was_done(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pipeline.run()
    monkeypatch.setattr("afm_dist.runs.run.__version__", "9.9.9")

    run = pipeline.run()

    assert run.redone == ALL
    assert "-> 9.9.9" in capsys.readouterr().out


def events(pipeline: Pipeline) -> list[dict[str, Any]]:
    lines = Path(pipeline.path, "events.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_events_tell_what_happened(pipeline: Pipeline) -> None:
    pipeline.failing = "evaluate"
    with pytest.raises(RuntimeError):
        pipeline.run()

    reported = [(event["event"], event.get("stage")) for event in events(pipeline)]

    assert reported == [
        ("job started", None),
        ("stage started", "train"),
        ("stage finished", "train"),
        ("stage started", "compress"),
        ("stage finished", "compress"),
        ("stage started", "evaluate"),
        ("stage failed", "evaluate"),
    ]
    assert "power cut" in events(pipeline)[-1]["error"]


def test_a_run_records_its_configuration_and_environment(pipeline: Pipeline) -> None:
    run = pipeline.run()

    assert storage.read_json(f"{run.path}/config.json", object) == {"job": "compress", "rate": 0.1}
    environment = storage.read_json(f"{run.path}/environment.json", object)
    assert environment["packages"]["torch"] != "absent"
    assert environment["cores"] >= 1


@pytest.mark.parametrize(
    ("content", "reported"),
    [
        ({"manifest.json": "{}", "train/part-00000.parquet": "rows"}, "other files (manifest.json, train)"),
        ({"config.json": '{"job": "train"}', "checkpoint/config.json": "{}"}, "a run of the job train"),
        ({"config.json": '{"format_version": 1}', "model.safetensors": ""}, "other files (config.json"),
    ],
)
def test_a_folder_of_something_else_is_refused_and_left_alone(
    tmp_path: Path, content: dict[str, str], reported: str
) -> None:
    for name, text in content.items():
        storage.write_bytes(str(tmp_path / name), text.encode())

    with pytest.raises(OptionError, match=re.escape(reported)):
        Run(str(tmp_path), job="compress", config={})

    for name, text in content.items():
        assert (tmp_path / name).read_text() == text


def test_a_file_in_the_place_of_the_run_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("mine")

    with pytest.raises(OptionError, match="notes: a file"):
        Run(str(tmp_path / "notes"), job="train", config={})


def test_a_clearing_that_was_interrupted_leaves_nothing_to_go_on_from(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline.failing = "compress"
    with pytest.raises(RuntimeError):
        pipeline.run()
    pipeline.failing = None
    remove = storage.remove

    def killed_before_the_folder(location: str) -> None:
        if location.endswith("/compress"):
            raise KeyboardInterrupt
        remove(location)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(storage, "remove", killed_before_the_folder)
        pipeline.run(rank=4)
    pipeline.run()

    assert pipeline.parts("compress") == ["part"]


def test_an_interrupted_stage_that_starts_anew_says_so(
    pipeline: Pipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    pipeline.failing = "compress"
    with pytest.raises(RuntimeError):
        pipeline.run()
    pipeline.failing = None

    pipeline.run(rank=4)

    assert "[compress] running anew" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["notes.md", "deeper/notes.md", "deeper/still/notes.md"])
@pytest.mark.parametrize("resume", ["auto", "never"])
def test_a_stage_that_is_done_anew_deletes_no_file_of_others(
    pipeline: Pipeline, name: str, resume: Resume
) -> None:
    pipeline.run()
    storage.write_bytes(f"{pipeline.path}/compress/{name}", b"theirs")
    pipeline.run()

    with pytest.raises(OptionError, match=rf"the stage 'compress' .*\(compress/{name}\); move them away"):
        pipeline.run(rank=4, resume=resume)

    assert storage.read_bytes(f"{pipeline.path}/compress/{name}") == b"theirs"
    assert storage.exists(f"{pipeline.path}/compress/_SUCCESS")
    storage.remove(f"{pipeline.path}/compress/{name}")
    assert "compress" in pipeline.run(rank=4).redone


def test_a_link_in_a_stage_is_not_followed_and_not_deleted(pipeline: Pipeline, tmp_path: Path) -> None:
    pipeline.run()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("theirs")
    Path(pipeline.path, "compress", "mine").symlink_to(tmp_path / "mine")

    with pytest.raises(OptionError, match=r"\(compress/mine\)"):
        pipeline.run(rank=4)

    assert (tmp_path / "mine" / "thesis.tex").read_text() == "theirs"


def test_a_folder_that_is_named_like_a_stage_to_come_is_left_alone(pipeline: Pipeline) -> None:
    pipeline.failing = "compress"
    with pytest.raises(RuntimeError):
        pipeline.run()
    pipeline.failing = None
    storage.write_bytes(f"{pipeline.path}/report/notes.md", b"theirs")

    with pytest.raises(OptionError, match=r"\(report/notes\.md\)"):
        pipeline.run()

    assert storage.read_bytes(f"{pipeline.path}/report/notes.md") == b"theirs"


def test_a_stage_of_a_release_without_records_is_cleared_by_its_markers(pipeline: Pipeline) -> None:
    pipeline.run()
    storage.remove(f"{pipeline.path}/.stages")

    assert pipeline.run(rank=4).redone == ["compress", "report"]


@pytest.mark.parametrize("environment", [None, "{}", "[]", "half", '{"python": "3.11"}'])
def test_a_configuration_of_the_same_job_alone_makes_no_run(tmp_path: Path, environment: str | None) -> None:
    (tmp_path / "config.json").write_text('{"job": "compress"}')
    (tmp_path / "notes.md").write_text("theirs")
    if environment is not None:
        (tmp_path / "environment.json").write_text(environment)

    with pytest.raises(OptionError, match=r"the folder holds other files \(config\.json"):
        Run(str(tmp_path), job="compress", config={})

    assert (tmp_path / "config.json").read_text() == '{"job": "compress"}'


def test_a_file_that_is_added_to_a_stage_belongs_to_it(pipeline: Pipeline) -> None:
    pipeline.run()
    stage_files.record_added(pipeline.path, "compress", "README.md")
    storage.write_bytes(f"{pipeline.path}/compress/README.md", b"ours")

    assert "compress" in pipeline.run(rank=4).redone
    assert not storage.exists(f"{pipeline.path}/compress/README.md")
