"""Memory of the statistics pass: the same for ten times as many rows, groups and layers' partials."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from afm_dist.dataset.manifest import Field, Manifest
from tests.small_dataset import write_dataset

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(7200)]

ROOT = Path(__file__).parents[2]
# Criteo's fields and the published layers; ids are few, so that the tables are small.
FIELDS = (
    *(Field(name=f"c{i}", kind="categorical", cardinality=1000) for i in range(26)),
    *(Field(name=f"n{i}", kind="numeric") for i in range(13)),
)
HYPER_PARAMETERS = {"embedding_dim": 16, "hidden": (400, 400, 400)}
SHARD_ROWS = 80_000
SHARDS = (25, 250)
# What an allocator keeps or gives back between two runs of the same.
NOISE_BYTES = 50_000_000

PASS = """
import sys
from pathlib import Path
import ray
from afm_dist.dataset.manifest import Manifest
from afm_dist.models import build_model
from afm_dist.statistics.collect import collect_moments
from data_prep.work import _forget_peak_memory, _peak_memory
from tests.faults.test_memory import HYPER_PARAMETERS

data, peaks, layers = sys.argv[1:]
manifest = Manifest.load(data)
model = build_model("deepfm", manifest.fields, HYPER_PARAMETERS)

def watched(model, batch):
    import os
    file = Path(peaks, str(os.getpid()))
    if not file.exists():
        _forget_peak_memory()
    model(batch.ids, batch.numeric)
    file.write_text(str(_peak_memory()))

ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
_forget_peak_memory()
collect_moments(model, manifest, layers.split(), forward_fn=watched)
Path(peaks, "driver").write_text(str(_peak_memory()))
"""


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return write_dataset(
        tmp_path_factory.mktemp("shard"), splits={"train": (SHARD_ROWS,)}, fields=FIELDS, seed=1
    )


def repeated(shard: Manifest, times: int, location: Path) -> Manifest:
    """A training split of so many links to one shard."""
    (only,) = shard.shards("train")
    (location / "train").mkdir(parents=True)
    shards = tuple(replace(only, path=f"train/part-{i:05d}.parquet") for i in range(times))
    for link in shards:
        os.link(Path(shard.location, only.path), location / link.path)
    manifest = replace(shard, location=str(location), splits={"train": shards}, vocabulary={})
    manifest.save()
    return manifest


def peaks(manifest: Manifest, folder: Path, layers: str) -> tuple[int, int]:
    """Peak bytes of resident memory of a worker and of the driver, during a pass."""
    folder.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", PASS, manifest.location, str(folder), layers]
    subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)
    found = {path.name: int(path.read_text()) for path in folder.iterdir()}
    driver = found.pop("driver")
    return max(found.values()), driver


def test_a_pass_needs_the_same_memory_for_ten_times_the_rows_and_partials(
    shard: Manifest, tmp_path: Path
) -> None:
    measured = []
    for i, (times, layers) in enumerate(((SHARDS[0], "mlp.3"), *((n, "mlp.3 mlp.6") for n in SHARDS))):
        manifest = repeated(shard, times, tmp_path / f"data-{i}")
        worker, driver = peaks(manifest, tmp_path / f"peaks-{i}", layers)
        measured.append((worker, driver))
        print(
            f"{manifest.rows('train'):,} rows, {times} groups, {layers}: "
            f"worker {worker / 1e6:.0f} MB, driver {driver / 1e6:.0f} MB"
        )

    for small, large in pairwise(measured):
        for before, after in zip(small, large, strict=True):
            assert after - before < NOISE_BYTES
