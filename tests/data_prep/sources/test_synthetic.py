from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from afm_dist.errors import OptionError
from data_prep.sources.planted import BLOCK_ROWS, PART_ROWS
from data_prep.sources.planted_shapes import SHAPES, ShapeName
from data_prep.sources.synthetic import SyntheticLog, write_synthetic

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]

TWO_FILES = PART_ROWS + BLOCK_ROWS + 1000


@pytest.fixture(scope="module")
def logs(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> dict[ShapeName, SyntheticLog]:
    """A log of two files for each shape."""
    folder = tmp_path_factory.mktemp("logs")
    return {shape: write_synthetic(str(folder / shape), TWO_FILES, 7, shape) for shape in SHAPES}


def _content(folder: Path | str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


def _written(folder: Path | str) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in Path(folder).iterdir()}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_log_has_files_of_a_fixed_number_of_rows_each_with_its_truth(
    logs: dict[ShapeName, SyntheticLog], shape: ShapeName
) -> None:
    log = logs[shape]
    suffix, header = {"criteo": ("txt", 0), "avazu": ("csv", 1)}[shape]
    texts = [Path(path).read_bytes() for path in log.paths]
    truths = [pq.read_table(path) for path in log.truths]

    assert [Path(path).name for path in log.paths] == [f"part-00000.{suffix}", f"part-00001.{suffix}"]
    assert [text.count(b"\n") - header for text in texts] == [PART_ROWS, TWO_FILES - PART_ROWS]
    assert [table.num_rows for table in truths] == [PART_ROWS, TWO_FILES - PART_ROWS]
    assert np.concatenate([table["row"] for table in truths]).tolist() == list(range(TWO_FILES))
    assert (log.rows, log.seed, log.shape) == (TWO_FILES, 7, shape)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_truth_has_the_labels_of_the_log(logs: dict[ShapeName, SyntheticLog], shape: ShapeName) -> None:
    separator, column, header = {"criteo": (b"\t", 0, 0), "avazu": (b",", 1, 1)}[shape]
    for path, truth in zip(logs[shape].paths, logs[shape].truths, strict=True):
        lines = Path(path).read_bytes().splitlines()[header:]
        labels = [int(line.split(separator, column + 1)[column]) for line in lines]
        assert pq.read_table(truth)["label"].to_pylist() == labels


@pytest.mark.slow
def test_one_worker_writes_the_same_bytes_as_two(logs: dict[ShapeName, SyntheticLog], tmp_path: Path) -> None:
    program = (
        "import ray; ray.init(address='local', num_cpus=1, include_dashboard=False, log_to_driver=False)\n"
        "from data_prep.sources.synthetic import SHAPES, write_synthetic\n"
        f"for shape in SHAPES: write_synthetic({str(tmp_path)!r} + '/' + shape, {TWO_FILES}, 7, shape)\n"
        "print('workers', int(ray.cluster_resources()['CPU']))"
    )
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    root = Path(__file__).parents[3]

    result = subprocess.run(
        [sys.executable, "-c", program], cwd=root, env=environment, capture_output=True, text=True, check=True
    )

    assert result.stdout.splitlines()[-1] == "workers 1"
    for shape in SHAPES:
        assert _content(tmp_path / shape) == _content(Path(logs[shape].paths[0]).parent)


def test_an_interrupted_log_goes_on_where_it_was(logs: dict[ShapeName, SyntheticLog], tmp_path: Path) -> None:
    """Files appear one by one; what a killed worker was writing is cleared away."""
    whole = _content(Path(logs["avazu"].paths[0]).parent)
    leftover = f".part-00001.csv.{32 * '0'}.tmp"
    for name in (
        "digests-00000.json",
        "log.json",
        "part-00000.csv",
        "truth-00000.parquet",
        "truth-00001.parquet",
    ):
        (tmp_path / name).write_bytes(whole[name])
    (tmp_path / leftover).write_text("half a fi")
    before = _written(tmp_path)

    write_synthetic(str(tmp_path), TWO_FILES, 7, "avazu")

    after = _written(tmp_path)
    assert _content(tmp_path) == whole
    assert {name for name in whole if before.get(name) == after[name]} == {
        "digests-00000.json",
        "log.json",
        "part-00000.csv",
        "truth-00000.parquet",
    }


@pytest.mark.parametrize("name", ["part-00000.csv", "truth-00000.parquet", "digests-00000.json"])
def test_a_file_that_was_altered_is_written_again(
    logs: dict[ShapeName, SyntheticLog], tmp_path: Path, name: str
) -> None:
    whole = _content(Path(logs["avazu"].paths[0]).parent)
    for each, content in whole.items():
        (tmp_path / each).write_bytes(content)
    altered = bytearray(whole[name])
    altered[len(altered) // 2] ^= 1
    (tmp_path / name).write_bytes(altered)
    before = _written(tmp_path)

    write_synthetic(str(tmp_path), TWO_FILES, 7, "avazu")

    assert _content(tmp_path) == whole
    assert _written(tmp_path)["part-00001.csv"] == before["part-00001.csv"]


def test_a_complete_log_is_not_written_again(logs: dict[ShapeName, SyntheticLog]) -> None:
    folder = Path(logs["criteo"].paths[0]).parent
    before = _written(folder)

    assert write_synthetic(str(folder), TWO_FILES, 7) == logs["criteo"]
    assert _written(folder) == before


@pytest.mark.parametrize("shape", SHAPES)
def test_a_log_is_the_beginning_of_a_longer_one(
    logs: dict[ShapeName, SyntheticLog], shape: ShapeName, tmp_path: Path
) -> None:
    short = write_synthetic(str(tmp_path / "short"), BLOCK_ROWS + 17, 7, shape)

    text, longer = (Path(log.paths[0]).read_bytes() for log in (short, logs[shape]))
    truth, longer_truth = (pq.read_table(log.truths[0]) for log in (short, logs[shape]))
    assert longer.startswith(text)
    assert longer_truth.slice(0, BLOCK_ROWS + 17).equals(truth)


def test_a_log_grows_and_shrinks_by_its_last_files(tmp_path: Path) -> None:
    folder = str(tmp_path)
    write_synthetic(folder, PART_ROWS + 10, 1, "avazu")
    before = _content(folder)
    first = _written(folder)["part-00000.csv"]

    write_synthetic(folder, PART_ROWS + 20, 1, "avazu")
    longer = _content(folder)
    write_synthetic(folder, PART_ROWS + 10, 1, "avazu")

    assert _written(folder)["part-00000.csv"] == first
    assert longer["part-00001.csv"].startswith(before["part-00001.csv"])
    assert longer["part-00001.csv"].count(b"\n") == 21
    assert _content(folder) == before
    write_synthetic(folder, 10, 1, "avazu")
    assert set(_content(folder)) == {
        "digests-00000.json",
        "log.json",
        "part-00000.csv",
        "truth-00000.parquet",
    }
    assert before["part-00000.csv"].startswith(_content(folder)["part-00000.csv"])


@pytest.mark.parametrize(
    ("seed", "shape", "generator"), [(2, "criteo", None), (1, "avazu", None), (1, "criteo", -1)]
)
def test_another_synthetic_log_is_replaced(
    tmp_path: Path, seed: int, shape: ShapeName, generator: int | None
) -> None:
    write_synthetic(str(tmp_path / "new"), 100, seed, shape)
    write_synthetic(str(tmp_path / "old"), 100, 1, "criteo")
    record = tmp_path / "old" / "log.json"
    if generator is not None:
        record.write_text(json.dumps(json.loads(record.read_text()) | {"generator": generator}))
        (tmp_path / "old" / "part-00000.txt").write_text("of an earlier release")

    write_synthetic(str(tmp_path / "old"), 100, seed, shape)

    assert _content(tmp_path / "old") == _content(tmp_path / "new")


@pytest.mark.parametrize("name", ["part-00000.txt", "truth-00000.parquet", "log.json"])
def test_a_log_of_the_users_own_is_left_alone(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text('{"mine": 1}')

    with pytest.raises(OptionError, match=rf"{name}: not of a synthetic log; move it away"):
        write_synthetic(str(tmp_path), 10, 1)

    assert _content(tmp_path) == {name: b'{"mine": 1}'}


def test_files_of_the_user_beside_a_log_are_left_alone(tmp_path: Path) -> None:
    write_synthetic(str(tmp_path), 10, 1)
    for name in ("part-00000.csv", "notes.txt", ".part-00000.txt.swp"):
        (tmp_path / name).write_text("precious")

    write_synthetic(str(tmp_path), 10, 2)
    with pytest.raises(OptionError, match=r"part-00000\.csv: not of a synthetic log"):
        write_synthetic(str(tmp_path), 10, 2, "avazu")

    for name in ("part-00000.csv", "notes.txt", ".part-00000.txt.swp"):
        assert (tmp_path / name).read_text() == "precious"
    assert (tmp_path / "part-00000.txt").exists()


def test_a_log_can_lie_on_a_file_system_that_a_uri_names(
    logs: dict[ShapeName, SyntheticLog], tmp_path: Path
) -> None:
    log = write_synthetic(f"file://{tmp_path}/log", 100, 7, "avazu")

    assert log.paths == (f"file://{tmp_path}/log/part-00000.csv",)
    text = (tmp_path / "log" / "part-00000.csv").read_bytes()
    assert Path(logs["avazu"].paths[0]).read_bytes().startswith(text)


def test_a_log_needs_rows_and_a_shape_there_is(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="--rows 0"):
        write_synthetic(str(tmp_path / "log"), 0, 1)
    with pytest.raises(OptionError, match="--shape kdd12: choose one of criteo, avazu"):
        write_synthetic(str(tmp_path / "log"), 10, 1, "kdd12")

    assert not (tmp_path / "log").exists()
