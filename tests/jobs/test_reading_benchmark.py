from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch

from afm_dist.dataset.manifest import Manifest
from afm_dist.dataset.reader import read_shard
from jobs.benchmarks import reading
from tests.jobs.test_benchmark import check_figures


def test_batches_are_compared_with_decoding_alone() -> None:
    figures = [asdict(result) for result in reading.run(rows=3_000, rounds=1)]

    check_figures(figures, "prepare", whole=False)
    decoding, *batches, size = figures
    assert len(batches) == 4
    assert (size["name"], size["unit"]) == ("a row in shards", "bytes")
    assert decoding["reference"] is None
    assert {figure["reference"] for figure in batches} == {decoding["name"]}


def test_the_log_has_criteo_s_shape_and_passes_the_checks(tmp_path: Path) -> None:
    manifest = reading.write_dataset(str(tmp_path), 120_000)

    assert [shard.rows for shard in manifest.shards("train")] == [100_000, 20_000]
    batch = read_shard(manifest, manifest.shards("train")[1])
    assert (batch.ids.shape, batch.numeric.shape) == ((20_000, 26), (20_000, 13))
    assert int((batch.ids[:, -1] > 1 << 20).sum()) > 0
    assert 0.1 < float((batch.ids[:, -1] < 4).float().mean()) < 0.2


def test_everything_timed_reads_every_row(tmp_path: Path) -> None:
    manifest: Manifest = reading.write_dataset(str(tmp_path), 1_234)

    assert {read() for read in reading.actions(manifest).values()} == {1_234}


def test_the_threads_of_torch_are_those_of_before() -> None:
    before = torch.get_num_threads()

    reading.run(rows=10, rounds=1)

    assert torch.get_num_threads() == before
