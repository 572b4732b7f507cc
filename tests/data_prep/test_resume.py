"""An interrupted preparation goes on where it was, and ends in the same bits."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from afm_dist import storage
from afm_dist.dataset.manifest import Manifest
from afm_dist.errors import DataError
from afm_dist.runtime import cluster
from data_prep import encode, pipeline, vocabulary, work
from data_prep.pipeline import prepare
from data_prep.plan import make_plan, why_prepare
from data_prep.protocol import Protocol
from data_prep.sources.tabular import TabularSource
from data_prep.sources.tabular_columns import ColumnOptions
from tests.data_prep.prepared import read_split

PROTOCOL = Protocol(seed=2, rows_per_shard=80, max_bad_rows=0.1)
REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A table of several blocks, with malformed rows."""
    path = tmp_path / "clicks.csv"
    rows = [f"{i % 4 == 0:d},a{i % 37},s{i * i % 11},{i / 8}" if i % 90 else "bad" for i in range(300)]
    path.write_text("click,ad,site,price\n" + "\n".join(rows) + "\n")
    return path


def _source(table: Path, *, block_bytes: int = 1_500) -> TabularSource:
    return TabularSource([str(table)], ColumnOptions(label="click"), block_bytes=block_bytes)


@pytest.fixture
def in_ranges(here: pytest.MonkeyPatch) -> None:
    """Some fields are cut into ranges of tokens, so that every stage has tasks."""
    here.setattr(vocabulary, "RANGE_TOKENS", 20)


@pytest.fixture
def whole(here: pytest.MonkeyPatch, in_ranges: None, table: Path, tmp_path: Path) -> Manifest:
    return prepare(_source(table), str(tmp_path / "whole"), PROTOCOL)


class _Interrupted:
    """Lets some tasks run; the next one is begun and never finishes."""

    def __init__(self, after: int) -> None:
        self.left = after
        self._direct = work._run_task

    def options(self, **_: Any) -> _Interrupted:
        return self

    def remote(self, *arguments: Any) -> Any:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return self._direct.remote(*arguments)


def _rejected(manifest: Manifest) -> list[bytes]:
    folder = storage.join(manifest.location, "rejected")
    return [storage.read_bytes(storage.join(folder, name)) for name in storage.list_names(folder)]


def test_an_interruption_after_any_task_changes_no_bit(
    whole: Manifest, table: Path, tmp_path: Path, here: pytest.MonkeyPatch
) -> None:
    after = 0
    interrupted = True
    while interrupted:
        output = str(tmp_path / f"after-{after}")
        with here.context() as patch:
            patch.setattr(work, "_run_task", _Interrupted(after))
            try:
                prepare(_source(table), output, PROTOCOL)
                interrupted = False
            except KeyboardInterrupt:
                assert not storage.exists(storage.join(output, "manifest.json"))
        resumed = prepare(_source(table), output, PROTOCOL)

        assert resumed.fingerprint() == whole.fingerprint()
        assert _rejected(resumed) == _rejected(whole)
        assert storage.list_names(output) == storage.list_names(whole.location)
        after += 3
    assert after > 20


def test_a_file_that_grows_after_its_size_was_read_gives_no_dataset(
    table: Path, tmp_path: Path, here: pytest.MonkeyPatch
) -> None:
    source = _source(table)
    with table.open("a") as file:
        file.write("1,a1,s1,0.5\n" * 300)

    with pytest.raises(DataError, match=r"clicks\.csv: the file changed while it was being read"):
        prepare(source, str(tmp_path / "data"), PROTOCOL)

    assert not (tmp_path / "data" / "manifest.json").exists()


@pytest.mark.parametrize("stage", ["scan", "parse", "fields", "encode", "finish"])
def test_a_stage_that_was_finished_is_not_repeated(
    whole: Manifest,
    table: Path,
    tmp_path: Path,
    stage: str,
    here: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = str(tmp_path / "data")

    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    with here.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pipeline if stage == "scan" else pipeline._Preparation, stage, interrupt)
        prepare(_source(table), output, PROTOCOL)
    with pytest.raises(DataError, match="not a dataset directory"):
        Manifest.load(output)
    stages = [name for name in storage.list_names(f"{output}/.work") if name not in ("spool", "maps", "runs")]
    before = {(name, key) for name in stages for key in storage.list_names(f"{output}/.work/{name}")}
    done: list[str] = []
    run = work._run_task

    class Recorded(_Interrupted):
        def remote(self, receipt: str, *arguments: Any) -> Any:
            done.append(receipt)
            return run.remote(receipt, *arguments)

    here.setattr(work, "_run_task", Recorded(0))
    resumed = prepare(_source(table), output, PROTOCOL)

    assert resumed.fingerprint() == whole.fingerprint()
    assert not {tuple(receipt.split("/")[-2:]) for receipt in done} & before
    if stage != "scan":
        assert "tasks were done before" in capsys.readouterr().out


def _interrupted_at_the_end(table: Path, output: str, here: pytest.MonkeyPatch) -> list[str]:
    """All receipts of a preparation that only lacks its manifest."""

    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    with here.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pipeline._Preparation, "finish", interrupt)
        prepare(_source(table), output, PROTOCOL)
    folder = Path(output) / ".work"
    return sorted(str(path) for path in folder.rglob("*.json") if path.parent.name not in ("driver", ".work"))


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_text('{"parts": [')])
def test_a_lost_or_damaged_receipt_changes_no_bit(
    whole: Manifest, table: Path, tmp_path: Path, here: pytest.MonkeyPatch, damage: Callable[[Path], object]
) -> None:
    output = str(tmp_path / "data")
    receipts = _interrupted_at_the_end(table, output, here)
    assert {Path(receipt).parent.name for receipt in receipts} == {
        "scan",
        "parse",
        "vocabulary",
        "count-ranges",
        "assign-ranges",
        "join-ranges",
        "encode",
        "shuffle",
    }
    for receipt in receipts[::3]:
        damage(Path(receipt))

    assert prepare(_source(table), output, PROTOCOL).fingerprint() == whole.fingerprint()


def _flip(path: Path, *, seed: int) -> None:
    """One bit of a file's values, keeping its time of change."""
    status, content = path.stat(), bytearray(path.read_bytes())
    generator = random.Random(seed)
    # Of a vocabulary, or a malformed row, that cannot be read it is not known whose it is: refused, by name.
    at = content.index(b"bad") if path.suffix == ".jsonl" else generator.randrange(8, len(content) // 4)
    content[at] ^= 1 << generator.randrange(3)
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize(
    "folder", [".work/spool", ".work/maps", ".work/ranges", "vocabulary", "train", "rejected"]
)
def test_a_file_that_was_altered_between_kill_and_resume_is_made_again(
    whole: Manifest,
    table: Path,
    tmp_path: Path,
    here: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    folder: str,
) -> None:
    output = tmp_path / "data"
    _interrupted_at_the_end(table, str(output), here)
    files = sorted((output / folder).iterdir())
    assert files
    for seed, path in enumerate(files):
        _flip(path, seed=seed)

    resumed = prepare(_source(table), str(output), PROTOCOL)

    assert resumed.fingerprint() == whole.fingerprint()
    assert {name: read_split(resumed, name) for name in resumed.splits} == {
        name: read_split(whole, name) for name in whole.splits
    }
    assert _rejected(resumed) == _rejected(whole)
    assert f"{files[0].name}: damaged (truncated or altered" in capsys.readouterr().err.replace("\n", "")


def test_a_receipt_that_was_altered_is_not_believed(
    whole: Manifest, table: Path, tmp_path: Path, here: pytest.MonkeyPatch
) -> None:
    output = str(tmp_path / "data")
    for receipt in map(Path, _interrupted_at_the_end(table, output, here)):
        # Every number is another one.
        receipt.write_text(re.sub(r"[0-8]", lambda digit: str(int(digit[0]) + 1), receipt.read_text()))

    assert prepare(_source(table), output, PROTOCOL).fingerprint() == whole.fingerprint()


def test_a_damaged_plan_starts_anew(
    whole: Manifest, table: Path, tmp_path: Path, here: pytest.MonkeyPatch
) -> None:
    output = str(tmp_path / "data")
    _interrupted_at_the_end(table, output, here)
    (tmp_path / "data" / ".work" / "plan.json").write_text("{")

    assert prepare(_source(table), output, PROTOCOL).fingerprint() == whole.fingerprint()


def test_going_on_with_other_blocks_changes_no_bit(
    whole: Manifest, table: Path, tmp_path: Path, here: pytest.MonkeyPatch
) -> None:
    output = str(tmp_path / "data")
    _interrupted_at_the_end(table, output, here)

    resumed = prepare(_source(table, block_bytes=2_500), output, PROTOCOL)

    assert resumed.fingerprint() == whole.fingerprint()


@pytest.mark.parametrize("change", ["protocol", "input", "columns"])
def test_receipts_of_another_plan_are_not_used(
    table: Path, tmp_path: Path, here: pytest.MonkeyPatch, change: str
) -> None:
    output = str(tmp_path / "data")
    _interrupted_at_the_end(table, output, here)
    protocol, columns = PROTOCOL, ColumnOptions(label="click")
    if change == "protocol":
        protocol = Protocol(seed=3, rows_per_shard=80, max_bad_rows=0.1)
    elif change == "input":
        table.write_text(table.read_text().replace("s1,", "s2,"))
    else:
        columns = ColumnOptions(label="click", drop=("site",))
    source = TabularSource([str(table)], columns, block_bytes=1_500)

    resumed = prepare(source, output, protocol)

    anew = prepare(source, str(tmp_path / "anew"), protocol)
    assert resumed.fingerprint() == anew.fingerprint()


def test_never_starts_anew(
    table: Path, tmp_path: Path, here: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = str(tmp_path / "data")
    _interrupted_at_the_end(table, output, here)

    prepare(_source(table), output, PROTOCOL, resume="never")

    assert "done before" not in capsys.readouterr().out


KILLED = """
import os, signal, sys
from data_prep import encode, pipeline
from data_prep.protocol import Protocol
from data_prep.sources.tabular import TabularSource
from data_prep.sources.tabular_columns import ColumnOptions
from tests.data_prep.in_this_process import in_this_process

source = TabularSource([sys.argv[1]], ColumnOptions(label="click"), block_bytes=1_500)
with in_this_process() as patch:
    patch.setattr(encode, "shard_bytes", lambda *arguments: os.kill(os.getpid(), signal.SIGKILL))
    pipeline.prepare(source, sys.argv[2], Protocol(seed=2, rows_per_shard=80, max_bad_rows=0.1))
"""


def test_a_killed_driver_changes_no_bit(table: Path, tmp_path: Path, here: pytest.MonkeyPatch) -> None:
    output = str(tmp_path / "data")
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(table), output], cwd=REPOSITORY, capture_output=True, check=False
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr

    resumed = prepare(_source(table), output, PROTOCOL)

    assert resumed.fingerprint() == prepare(_source(table), str(tmp_path / "whole"), PROTOCOL).fingerprint()


def test_a_finished_preparation_is_up_to_date_without_ray(
    table: Path, tmp_path: Path, here: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = prepare(_source(table), str(tmp_path / "data"), PROTOCOL)
    here.setattr(cluster, "ensure_ray", lambda: pytest.fail("started Ray"))

    again = prepare(_source(table), made.location, PROTOCOL)

    assert again.fingerprint() == made.fingerprint()
    assert "up to date" in capsys.readouterr().out


def test_a_run_killed_between_manifest_and_cleaning_up_is_up_to_date(
    table: Path, tmp_path: Path, here: pytest.MonkeyPatch
) -> None:
    with here.context() as patch:
        patch.setattr(work.WorkDirectory, "remove", lambda self: None)
        made = prepare(_source(table), str(tmp_path / "data"), PROTOCOL)

    again = prepare(_source(table), made.location, PROTOCOL)

    assert again.fingerprint() == made.fingerprint()
    assert ".work" not in storage.list_names(made.location)


def test_other_options_are_named_and_redone(
    table: Path, tmp_path: Path, here: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = str(tmp_path / "data")
    prepare(_source(table), output, Protocol(threshold=1, max_bad_rows=0.1))

    again = prepare(_source(table), output, Protocol(threshold=4, max_bad_rows=0.1))

    assert "threshold 1 -> 4" in capsys.readouterr().out
    assert again.facts["threshold"] == 4


def test_a_changed_input_and_a_missing_file_are_noticed(
    table: Path, tmp_path: Path, here: pytest.MonkeyPatch
) -> None:
    made = prepare(_source(table), str(tmp_path / "data"), PROTOCOL)
    plan = make_plan(_source(table), PROTOCOL)
    assert why_prepare(made.location, plan) is None

    table.write_text(table.read_text() + "1,a1,s1,0.5\n")
    changed = make_plan(_source(table), PROTOCOL)
    assert why_prepare(made.location, changed) == "again: the input changed"

    for name in ("test/part-00000.parquet", "vocabulary/ad.parquet"):
        storage.remove(storage.join(made.location, name))
        assert why_prepare(made.location, plan) == f"again: {name} is missing"


@pytest.mark.parametrize("name", ["prepare.json", "manifest.json"])
@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_text('{"format_version": 1}')])
def test_a_dataset_whose_record_is_lost_or_damaged_is_made_again(
    table: Path, tmp_path: Path, here: pytest.MonkeyPatch, name: str, damage: Callable[[Path], object]
) -> None:
    made = prepare(_source(table), str(tmp_path / "data"), PROTOCOL)
    damage(tmp_path / "data" / name)
    assert why_prepare(made.location, make_plan(_source(table), PROTOCOL)) is not None

    again = prepare(_source(table), made.location, PROTOCOL)

    assert again.fingerprint() == Manifest.load(made.location).fingerprint() == made.fingerprint()


def test_a_failed_preparation_leaves_the_dataset_that_was_there(
    table: Path, tmp_path: Path, here: pytest.MonkeyPatch
) -> None:
    bad = tmp_path / "bad.csv"
    bad.write_text("click,ad,site,price\n" + "1,a,b,0.5\n" * 20 + "broken\n" * 12)
    before = prepare(_source(table), str(tmp_path / "data"), PROTOCOL)

    with pytest.raises(DataError, match=r"12 of 32 rows are malformed, more than --max-bad-rows 0.1 allows"):
        prepare(_source(bad), before.location, PROTOCOL, overwrite=True)

    assert Manifest.load(before.location).fingerprint() == before.fingerprint()
    assert len(read_split(before, "train")["click"]) == before.rows("train")


def test_an_altered_run_of_training_rows_is_made_again(
    whole: Manifest, table: Path, tmp_path: Path, here: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = str(tmp_path / "data")

    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    with here.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(encode, "gather_shards", interrupt)
        prepare(_source(table), output, PROTOCOL)
    run = Path(output) / ".work" / "runs" / "run-00001"
    content = bytearray(run.read_bytes())
    content[len(content) // 2] ^= 8
    run.write_bytes(content)

    resumed = prepare(_source(table), output, PROTOCOL)

    assert resumed.fingerprint() == whole.fingerprint()
    assert "runs/run-00001" in capsys.readouterr().err
