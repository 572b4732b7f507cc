"""A preparation removes nothing that is not its own, and notices what was done to its files."""

from __future__ import annotations

from pathlib import Path

import pytest

from afm_dist import storage
from afm_dist.dataset.manifest import Manifest
from afm_dist.errors import DataError, OptionError
from data_prep import pipeline
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
