"""A preparation removes nothing that is not its own, and notices what was done to its files."""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from pathlib import Path

import pytest

from afm_dist import storage
from afm_dist.dataset.manifest import Manifest
from afm_dist.errors import DataError, OptionError
from data_prep import pipeline, work
from data_prep.pipeline import prepare
from data_prep.plan import check_output, make_plan, why_prepare
from data_prep.protocol import Protocol
from data_prep.sources.criteo import CriteoSource
from tests.data_prep.raw_logs import criteo_text

pytestmark = pytest.mark.ray


def _log(path: Path, rows: int = 300) -> CriteoSource:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(criteo_text(rows))
    return CriteoSource([str(path)])


@pytest.mark.parametrize("name", ["train", "test", "vocabulary", "describe.html"])
def test_a_folder_of_the_users_is_not_taken_for_a_dataset(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()

    with pytest.raises(OptionError, match=f"holds other files \\({name}\\)"):
        check_output(str(tmp_path))


FOREIGN_MANIFESTS = [
    '{"name": "my web app", "manifest_version": 3}',
    '{"format_version": 2, "files": ["train/a.jpg"]}',
    '{"format_version": 2',
    "[]",
    "",
]


@pytest.mark.parametrize("manifest", FOREIGN_MANIFESTS)
def test_a_manifest_of_others_or_an_unreadable_one_permits_nothing(tmp_path: Path, manifest: str) -> None:
    log, output = _log(tmp_path / "log.txt"), tmp_path / "data"
    names = ("train/cat.jpg", "validation/part-00000.parquet", "test/dog.jpg")
    theirs = {"manifest.json": manifest, **dict.fromkeys(names, "theirs")}
    for name, text in theirs.items():
        storage.write_bytes(str(output / name), text.encode())

    for overwrite in (False, True):
        with pytest.raises(OptionError, match=r"holds other files \(manifest\.json, test, train\)"):
            prepare(log, str(output), Protocol(), overwrite=overwrite)

    assert {name: (output / name).read_text() for name in theirs} == theirs


@pytest.mark.parametrize(
    "name", [".work/plan.json", "prepare.json", ".work/notes.txt", ".work/driver/owner.json"]
)
@pytest.mark.parametrize("content", ['{"version": 1}', "{}", "my notes"])
def test_other_names_of_ours_permit_nothing_either(tmp_path: Path, name: str, content: str) -> None:
    for path in (name, "train/part-00000.parquet"):
        storage.write_bytes(str(tmp_path / path), content.encode())

    with pytest.raises(OptionError, match="holds other files"):
        check_output(str(tmp_path))


@pytest.fixture(scope="module")
def made(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log and its dataset, with malformed rows."""
    folder = tmp_path_factory.mktemp("made")
    _log(folder / "log.txt")
    with (folder / "log.txt").open("a") as log:
        log.write("broken\n")
    prepare(CriteoSource([str(folder / "log.txt")]), str(folder / "data"), Protocol(max_bad_rows=0.1))
    return folder


@pytest.mark.parametrize(
    "name",
    [
        "notes.txt",
        "train/notes.txt",
        "train/part-00099.parquet",
        "test/deeper/part-00000.parquet",
        "vocabulary/mine.parquet",
        "rejected/mine.jsonl",
        "rejected/part-00007-000.jsonl",
        "experiments/a.txt",
        ".work/mine/a.txt",
        ".notes.tmp",
    ],
)
def test_files_of_others_in_a_dataset_are_named_and_stay(made: Path, tmp_path: Path, name: str) -> None:
    data = tmp_path / "data"
    shutil.copytree(made / "data", data)
    storage.write_bytes(str(data / name), b"theirs")
    before = {path: path.read_bytes() for path in data.rglob("*") if path.is_file()}
    named = "experiments" if name.startswith("experiments") else "/".join(name.split("/")[:2])

    with pytest.raises(OptionError, match=rf"holds other files \({named}\)"):
        prepare(
            CriteoSource([str(made / "log.txt")]),
            str(data),
            Protocol(max_bad_rows=0.1, threshold=5),
            overwrite=True,
        )

    assert {path: path.read_bytes() for path in data.rglob("*") if path.is_file()} == before


def test_files_that_are_put_into_a_dataset_while_it_is_made_again_stay(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data"
    shutil.copytree(made / "data", data)
    parse = pipeline._Preparation.parse

    def parse_while_others_write(*arguments: object) -> object:
        (data / "train" / "notes.txt").write_text("theirs")
        return parse(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(pipeline._Preparation, "parse", parse_while_others_write)
    with pytest.raises(OptionError, match=r"train/notes\.txt"):
        prepare(CriteoSource([str(made / "log.txt")]), str(data), Protocol(max_bad_rows=0.1), resume="never")

    assert (data / "train" / "notes.txt").read_text() == "theirs"
    assert Manifest.load(str(data)).rows("train")


@pytest.mark.parametrize("killed_at", ["encode", "spool", "driver/clear.json"])
def test_an_interruption_while_a_work_directory_is_cleared_leaves_it_ours(
    local_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_at: str
) -> None:
    source, output = _log(tmp_path / "log.txt"), str(tmp_path / "data")

    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pipeline._Preparation, "finish", interrupt)
        prepare(source, output, Protocol())
    remove = storage.remove

    def killed(location: str) -> None:
        remove(location)
        if location.endswith(f"/{killed_at}"):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(storage, "remove", killed)
        with suppress(KeyboardInterrupt):
            prepare(source, output, Protocol(seed=1))

    assert prepare(source, output, Protocol(seed=2)).seed == 2
    assert work.FOLDER not in storage.list_names(output)


@pytest.mark.parametrize("record", ["there", "lost", "damaged"])
def test_a_dataset_of_other_inputs_is_replaced_only_if_that_is_said(
    made: Path, local_ray: None, tmp_path: Path, record: str
) -> None:
    data, other = tmp_path / "data", _log(tmp_path / "other.txt", 200)
    shutil.copytree(made / "data", data)
    if record == "lost":
        (data / "prepare.json").unlink()
    elif record == "damaged":
        (data / "prepare.json").write_text("{")
    before = Manifest.load(str(data)).fingerprint()

    with pytest.raises(OptionError, match=r"300 rows of criteo \(.*log\.txt\); .* --overwrite"):
        prepare(other, str(data), Protocol())
    assert Manifest.load(str(data)).fingerprint() == before

    assert prepare(other, str(data), Protocol(), overwrite=True).fingerprint() != before


def test_more_files_than_before_are_other_inputs(made: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(made / "data", data)
    _log(tmp_path / "more.txt")

    with pytest.raises(OptionError, match="--overwrite"):
        prepare(CriteoSource([str(made / "log.txt"), str(tmp_path / "more.txt")]), str(data), Protocol())


def test_a_dataset_of_unknown_inputs_is_not_replaced(made: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(made / "data", data)
    (data / "prepare.json").unlink()
    manifest = json.loads((data / "manifest.json").read_text())
    (data / "manifest.json").write_text(json.dumps({**manifest, "sources": [], "facts": {}}))

    with pytest.raises(OptionError, match="300 rows of unknown inputs"):
        prepare(CriteoSource([str(made / "log.txt")]), str(data), Protocol())


@pytest.mark.parametrize("folder", ["train", "rejected", "vocabulary"])
def test_inputs_are_not_written_over(local_ray: None, tmp_path: Path, folder: str) -> None:
    output = str(tmp_path / "data")
    prepare(_log(tmp_path / "log.txt"), output, Protocol())
    inside = _log(tmp_path / "data" / folder / "log.txt")

    with pytest.raises(OptionError, match=r"holds the input .*log\.txt; name another folder"):
        prepare(inside, output, Protocol())

    assert (tmp_path / "data" / folder / "log.txt").exists()


def test_an_output_that_is_a_file_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "data").touch()

    with pytest.raises(OptionError, match=r"--output .*data: this is a file"):
        check_output(str(tmp_path / "data"))


def test_a_shortened_shard_is_made_again(local_ray: None, tmp_path: Path) -> None:
    source, output = _log(tmp_path / "log.txt"), str(tmp_path / "data")
    before = prepare(source, output, Protocol())
    shard = Path(output, before.shards("test")[0].path)
    shard.write_bytes(shard.read_bytes()[:-10])

    reason = why_prepare(output, make_plan(source, Protocol()))
    again = prepare(source, output, Protocol())

    assert reason == "again: test/part-00000.parquet is not what was written"
    assert again.fingerprint() == before.fingerprint()
    assert storage.sha256(shard.read_bytes()) == again.shards("test")[0].sha256


def test_an_input_that_changes_meanwhile_makes_no_dataset(
    local_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, output = _log(tmp_path / "log.txt"), str(tmp_path / "data")
    encode = pipeline._Preparation.encode

    def encode_while_the_log_grows(*arguments: object) -> object:
        with (tmp_path / "log.txt").open("a") as log:
            log.write(criteo_text(5))
        return encode(*arguments)

    monkeypatch.setattr(pipeline._Preparation, "encode", encode_while_the_log_grows)
    with pytest.raises(DataError, match=r"log\.txt: the file changed while it was being read"):
        prepare(source, output, Protocol())

    with pytest.raises(DataError, match="not a dataset directory"):
        Manifest.load(output)


def test_more_tolerance_of_bad_rows_goes_on_with_what_was_parsed(
    local_ray: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _log(tmp_path / "log.txt")
    with (tmp_path / "log.txt").open("a") as log:
        log.write("broken\n" * 30)
    source, output = CriteoSource([str(tmp_path / "log.txt")]), str(tmp_path / "data")
    with pytest.raises(DataError, match="more than --max-bad-rows"):
        prepare(source, output, Protocol())
    capsys.readouterr()

    prepare(source, output, Protocol(max_bad_rows=0.5))

    shown = capsys.readouterr().out
    assert "interrupted before, going on" in shown
    assert "parsing: 2 of 2 tasks were done before" in shown


def test_a_log_seen_for_the_first_time_is_new(
    local_ray: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(_log(tmp_path / "log.txt"), str(tmp_path / "data"), Protocol())

    assert "data (new)" in capsys.readouterr().out
