"""Interrupted at any point and started again: the same bytes. Nothing else is overwritten."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from afm_dist import storage
from afm_dist.errors import DataError, OptionError
from afm_dist.storage import files
from data_prep import work
from data_prep.scoring import pipeline, result
from data_prep.scoring.pipeline import predict
from data_prep.sources import tabular
from tests.data_prep.scoring.conftest import HEADER, clicks, write_csv
from tests.data_prep.scoring.models import Trained


class Stopped(BaseException):
    """As if the driver had been killed."""


@pytest.fixture
def rows(tmp_path: Path, here: pytest.MonkeyPatch) -> Path:
    """A log of several blocks."""
    here.setattr(tabular.TabularSource.__init__, "__kwdefaults__", {"block_bytes": 1_000})
    return write_csv(tmp_path / "rows.csv", HEADER[:3], [row[:3] for row in clicks(400, seed=1)])


def stop_after(here: pytest.MonkeyPatch, tasks: int) -> None:
    """The driver ends after so many tasks."""
    left = [tasks]

    def some(
        submit: Callable[[Any], Any], items: list[Any], *, finished: Callable[[Any, Any], None], **_: Any
    ) -> None:
        for item in items:
            if not left[0]:
                raise Stopped
            left[0] -= 1
            finished(item, submit(item))

    here.setattr(work, "run_tasks", some)


def test_interrupted_after_any_task_the_result_is_the_same_bytes(
    trained: Trained, rows: Path, tmp_path: Path, here: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "scores.parquet"
    trained.predict(tmp_path / "undisturbed.parquet", rows, keep=("user",))
    n_tasks = 0  # 5 blocks to scan, 2 vocabularies, 5 blocks to score
    while True:
        stop_after(here, 3)
        try:
            trained.predict(output, rows, keep=("user",))
            break
        except Stopped:
            assert not output.exists()
            n_tasks += 3
    assert n_tasks >= 9
    assert output.read_bytes() == (tmp_path / "undisturbed.parquet").read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"rows.csv", "scores.parquet", "undisturbed.parquet"}


def test_interrupted_while_the_result_is_written_no_part_of_it_is_seen(
    trained: Trained, rows: Path, tmp_path: Path, here: pytest.MonkeyPatch
) -> None:
    def failing(parts: Any) -> Any:
        yield from list(result_batches(parts))[:2]
        raise Stopped

    result_batches = result._batches
    with here.context() as patch:
        patch.setattr(result, "_batches", failing)
        with pytest.raises(Stopped):
            trained.predict(tmp_path / "scores.parquet", rows)
    assert not (tmp_path / "scores.parquet").exists()

    stop_after(here, 0)
    trained.predict(tmp_path / "scores.parquet", rows)

    assert pq.read_metadata(tmp_path / "scores.parquet").num_rows == 400


@pytest.mark.parametrize("resume", ["auto", "never"])
def test_interrupted_while_the_work_directory_is_deleted_the_next_run_begins_anew(
    trained: Trained, rows: Path, tmp_path: Path, here: pytest.MonkeyPatch, resume: str
) -> None:
    def half(folder: Path) -> None:
        for part in folder.glob("parts-*/*"):
            part.unlink()
        raise Stopped

    trained.predict(tmp_path / "undisturbed.parquet", rows)
    with here.context() as patch:
        # The end of a run, or the beginning of one that shall not go on.
        if resume == "never":
            patch.setattr(work.WorkDirectory, "remove", lambda self: None)
            trained.predict(tmp_path / "scores.parquet", rows)
            patch.undo()
        patch.setattr(files, "_remove_folder", half)
        with pytest.raises(Stopped):
            trained.predict(tmp_path / "scores.parquet", rows, resume=resume)

    trained.predict(tmp_path / "scores.parquet", rows)

    assert (tmp_path / "scores.parquet").read_bytes() == (tmp_path / "undisturbed.parquet").read_bytes()
    assert not Path(f"{tmp_path}/scores.parquet.work").exists()


@pytest.mark.parametrize("kind", ["parts", "lookups"])
def test_files_that_were_altered_between_kill_and_resume_are_made_again(
    trained: Trained, rows: Path, tmp_path: Path, here: pytest.MonkeyPatch, kind: str
) -> None:
    def stopped(*arguments: object) -> None:
        raise Stopped

    trained.predict(tmp_path / "undisturbed.parquet", rows, keep=("user",))
    output = tmp_path / "scores.parquet"
    with here.context() as patch, pytest.raises(Stopped):
        if kind == "parts":
            patch.setattr(pipeline, "write_result", stopped)
        else:
            patch.setattr(pipeline._Prediction, "score", stopped)
        trained.predict(output, rows, keep=("user",))
    files = list(Path(f"{output}.work").glob(f"{kind}-*/*"))
    assert files
    for path in files:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 16
        path.write_bytes(content)

    trained.predict(output, rows, keep=("user",))

    assert output.read_bytes() == (tmp_path / "undisturbed.parquet").read_bytes()


def test_input_that_changed_is_scored_anew(
    trained: Trained, rows: Path, tmp_path: Path, here: pytest.MonkeyPatch
) -> None:
    with here.context() as patch:
        stop_after(patch, 5)
        with pytest.raises(Stopped):
            trained.predict(tmp_path / "scores.parquet", rows)
    write_csv(rows, HEADER[:3], [row[:3] for row in clicks(400, seed=2)])

    trained.predict(tmp_path / "scores.parquet", rows)
    trained.predict(tmp_path / "again.parquet", rows)

    assert (tmp_path / "scores.parquet").read_bytes() == (tmp_path / "again.parquet").read_bytes()


def test_input_that_is_replaced_after_its_columns_were_read_gives_no_scores(
    trained: Trained, rows: Path, tmp_path: Path
) -> None:
    source = trained.source(rows)
    # As many bytes, in another order of columns.
    rows.write_text(rows.read_text().replace("user,ad,price", "ad,user,price"))

    with pytest.raises(DataError, match=r"rows\.csv: the file changed while it was being read"):
        predict(trained.model, trained.manifest, source, f"{tmp_path}/scores.parquet", max_bad_rows=1.0)

    assert not (tmp_path / "scores.parquet").exists()


def test_row_groups_are_of_equal_size_whatever_the_blocks(
    trained: Trained, rows: Path, tmp_path: Path, here: pytest.MonkeyPatch
) -> None:
    here.setattr(result, "ROW_GROUP_ROWS", 150)

    trained.predict(tmp_path / "scores.parquet", rows)

    metadata = pq.read_metadata(tmp_path / "scores.parquet")
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [150, 150, 100]
    assert pq.read_table(tmp_path / "scores.parquet")["row"].to_pylist() == list(range(400))


def test_part_that_lacks_rows_gives_no_result(
    trained: Trained, rows: Path, tmp_path: Path, here: pytest.MonkeyPatch
) -> None:
    batches = result._batches
    here.setattr(result, "_batches", lambda parts: list(batches(parts))[1:])

    with pytest.raises(DataError, match=r"work: its parts hold \d+ rows where their receipts say 400"):
        trained.predict(tmp_path / "scores.parquet", rows)

    assert not (tmp_path / "scores.parquet").exists()


def test_only_scores_are_overwritten(trained: Trained, rows: Path, tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1]}), tmp_path / "others.parquet")
    for name, message in (
        ("others.parquet", "something else than scores"),
        ("rows.csv", "this is an input"),
        ("", "a folder"),
    ):
        before = storage.list_sizes(str(tmp_path))
        with pytest.raises(OptionError, match=message):
            trained.predict(tmp_path / name, rows)
        assert storage.list_sizes(str(tmp_path)) == before

    trained.predict(tmp_path / "scores.parquet", rows)
    trained.predict(tmp_path / "scores.parquet", rows)


def test_scores_of_other_rows_or_of_another_model_are_replaced_only_if_that_is_said(
    trained: Trained, rows: Path, tmp_path: Path
) -> None:
    output, other = (
        tmp_path / "scores.parquet",
        write_csv(tmp_path / "other.csv", HEADER[:3], [["u1", "a", "1"]]),
    )
    trained.predict(output, rows, overwrite=False)
    before = output.read_bytes()
    model = trained.model
    with torch.no_grad():
        model.mlp[0].weight.add_(1)

    with pytest.raises(OptionError, match=r"scores of other rows \(rows\.csv\); .* --overwrite"):
        trained.predict(output, other, overwrite=False)
    with pytest.raises(OptionError, match=r"scores of another model \(rows\.csv\); .* --overwrite"):
        predict(model, trained.manifest, trained.source(rows), str(output), overwrite=False)
    assert output.read_bytes() == before

    trained.predict(output, rows, overwrite=False, batch_size=7)
    trained.predict(output, other, overwrite=True)
    assert pq.read_metadata(output).num_rows == 1


@pytest.mark.parametrize("about", [b"{}", b"null", b"half", b'{"model": 3}', b'"afm-dist"'])
def test_a_table_with_our_key_alone_is_not_taken_for_scores(
    trained: Trained, rows: Path, tmp_path: Path, about: bytes
) -> None:
    theirs = pa.table({"row": [1], "score": [0.5], "logit": [0.0]}).replace_schema_metadata(
        {"afm-dist": about}
    )
    pq.write_table(theirs, tmp_path / "scores.parquet")

    with pytest.raises(OptionError, match="something else than scores"):
        trained.predict(tmp_path / "scores.parquet", rows)


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("work", "thesis.txt"),
        ("work", "plan.json"),
        ("rejected", "thesis.txt"),
        ("rejected", "part-0123456789abcdef-00000-000.jsonl"),
    ],
)
@pytest.mark.parametrize("beside", [False, True], ids=["alone", "beside ours"])
def test_only_own_folders_are_deleted(
    trained: Trained,
    rows: Path,
    tmp_path: Path,
    here: pytest.MonkeyPatch,
    folder: str,
    name: str,
    beside: bool,
) -> None:
    if beside:
        bad = write_csv(tmp_path / "bad.csv", HEADER[:3], [["u1"], ["u1", "a", "1"]])
        with here.context() as patch:
            patch.setattr(work.WorkDirectory, "remove", lambda self: None)
            trained.predict(tmp_path / "scores.parquet", bad, max_bad_rows=1.0)
        (tmp_path / "scores.parquet").unlink()
        name = f"mine-{name}"
    foreign = tmp_path / f"scores.parquet.{folder}" / name
    foreign.parent.mkdir(exist_ok=True)
    foreign.touch()

    with pytest.raises(OptionError, match=rf"parquet\.{folder} is in the way .*{re.escape(name)}"):
        trained.predict(tmp_path / "scores.parquet", rows)

    assert foreign.exists()


def test_every_receipt_is_named_after_the_plan(
    trained: Trained, rows: Path, tmp_path: Path, here: pytest.MonkeyPatch
) -> None:
    here.setattr(work.WorkDirectory, "remove", lambda self: None)

    trained.predict(tmp_path / "scores.parquet", rows)

    folders = {path.name for path in Path(f"{tmp_path}/scores.parquet.work").iterdir()}
    (name,) = {folder.removeprefix("parts-") for folder in folders if folder.startswith("parts-")}
    stages = ("scan", "parts", "lookups", "vocabulary", "score")
    assert folders == {"plan.json", "driver", *(f"{stage}-{name}" for stage in stages)}


def test_late_task_of_another_plan_leaves_no_rejected_rows(trained: Trained, tmp_path: Path) -> None:
    rejected = tmp_path / "scores.parquet.rejected"
    rows = write_csv(tmp_path / "bad.csv", HEADER[:3], [["u1"], ["u1", "a", "1"]])

    class Late(work.WorkDirectory):
        def run(self, *arguments: Any, **options: Any) -> list[Any]:
            results = super().run(*arguments, **options)
            (rejected / "part-0123-00000-000.jsonl").write_text("{}\n") if rejected.exists() else None
            return results

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "WorkDirectory", Late)
        trained.predict(tmp_path / "scores.parquet", rows, max_bad_rows=1.0)

    (file,) = rejected.iterdir()
    assert "1 fields instead of 3" in file.read_text()


def test_scores_are_not_named_as_if_they_were_text(trained: Trained, rows: Path, tmp_path: Path) -> None:
    with pytest.raises(
        OptionError, match=r"scores\.csv: .* written as Parquet; name the file scores\.parquet"
    ):
        trained.predict(tmp_path / "scores.csv", rows)
