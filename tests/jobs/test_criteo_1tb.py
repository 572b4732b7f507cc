from __future__ import annotations

import re
from dataclasses import asdict

import pytest

from afm_dist.errors import DataError
from jobs.benchmarks import criteo_1tb
from jobs.benchmarks.criteo_1tb import Rates
from tests.jobs.commands import ROOT

# Round numbers, no measurements: only the arithmetic is at stake.
RATES = Rates(
    prepare=100_000,
    read=1_000_000,
    row_bytes=100,
    statistics=50_000,
    train=20_000,
    score=100_000,
    partial=2.5,
    merge=10,
    decompose=40,
    wide_partial=64,
    wide_merge=400,
    wide_decompose=8_000,
)
EMPTY = "".join(f"<!-- {name} -->\nold\n<!-- end of {name} -->\n" for name in criteo_1tb.TABLES)


def test_a_page_holds_the_rates_that_it_follows_from() -> None:
    page = criteo_1tb.written(EMPTY, RATES)

    assert "old" not in page
    assert criteo_1tb.rates_in(page) == RATES
    assert criteo_1tb.written(page, criteo_1tb.rates_in(page)) == page


def test_the_page_follows_from_the_rates_in_it() -> None:
    page = (ROOT / "docs" / "criteo-1tb.md").read_text(encoding="utf-8")

    assert criteo_1tb.written(page, criteo_1tb.rates_in(page)) == page


def test_a_changed_figure_in_a_page_does_not_stay() -> None:
    page = criteo_1tb.written(EMPTY, RATES)
    changed = re.sub(r"(scoring the test half, one model \| )[^|]+", r"\g<1>1 s ", page)

    assert changed != page
    assert criteo_1tb.written(changed, RATES) == page


def test_stages_take_their_rows_over_their_rates() -> None:
    assert criteo_1tb.prepare_seconds(RATES, 32) == pytest.approx(4_373_472_329 / 100_000 / 32)
    assert criteo_1tb.driver_seconds(RATES) == pytest.approx((256 * 10 + 40) / 1000)


def test_the_statistics_come_in_waves_of_groups() -> None:
    group = 4_195_197_692 / 256 / 50_000
    waves = {cores: criteo_1tb.statistics_seconds(RATES, cores) / group for cores in (32, 100, 128, 256, 512)}
    assert waves == pytest.approx({32: 8, 100: 3, 128: 2, 256: 1, 512: 1})


def test_one_worker_exchanges_nothing_and_more_workers_more() -> None:
    received = [criteo_1tb.exchange_bytes(cores) for cores in (16, 32, 128, 512)]
    assert received[0] == 0
    assert received == sorted(received)


@pytest.mark.parametrize("cores", [1, 2])
def test_rates_come_from_the_figures_of_all_cores(cores: int) -> None:
    figures = [
        {"suite": source.suite, "name": source.of(cores), "value": value * (cores if source.per_core else 1)}
        for source, value in zip(criteo_1tb.SOURCES.values(), asdict(RATES).values(), strict=True)
    ]
    assert criteo_1tb.rates_of(figures, cores=cores) == RATES
    with pytest.raises(DataError, match=r"Avazu: decompose two layers.*benchmark\.py statistics --json"):
        criteo_1tb.rates_of(figures[:-1], cores=cores)
    with pytest.raises(
        DataError, match=r"4 threads, eager: DeepFM.*benchmark\.py inference --threads 4 --json"
    ):
        criteo_1tb.rates_of([each for each in figures if each["suite"] != "inference"], cores=4)
