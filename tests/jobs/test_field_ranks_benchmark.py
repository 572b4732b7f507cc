"""The benchmark of ranks by field."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from afm_dist.dataset.manifest import Manifest
from jobs.benchmarks.field_ranks import RankPoint, measure, table
from tests.small_dataset import write_dataset
from tests.stages.bench import Bench


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return write_dataset(tmp_path_factory.mktemp("field-ranks"))


def test_each_budget_is_spent_in_both_ways(dataset: Manifest, tmp_path: Path) -> None:
    hyper = {"embedding_dim": 8, "hidden": [24, 20, 16], "dropout": 0.1}
    bench = Bench("deepfm", dataset, tmp_path, hyper)

    points = list(measure(dataset, bench.source, [1.2, 50]))

    assert [(point.ratio, point.way) for point in points] == [(1.2, "uniform"), (1.2, "each")]
    assert points[1].error <= points[0].error
    assert points[0].auc - points[0].gain == pytest.approx(points[1].auc - points[1].gain)


def test_differences_are_those_of_pairs_and_what_does_not_fit_is_said() -> None:
    def point(way: str, auc: float, ratio: float = 5.0) -> RankPoint:
        return RankPoint("deepfm", ratio, way, 0.1 if way == "each" else 0.2, auc, auc - 0.8)

    own = [point("uniform", 0.70), point("each", 0.71), point("uniform", 0.75), point("each", 0.75)]

    lines = table([*own, replace(own[1], ratio=12.0)]).splitlines()[2:]

    assert lines == [
        "| deepfm | 5 | 0.50 | -0.0750 ± 0.0354 | -0.0700 ± 0.0283 | +0.0050 ± 0.0071 |",
        "| deepfm | 12 | – | none fit | -0.0900 | – |",
    ]
