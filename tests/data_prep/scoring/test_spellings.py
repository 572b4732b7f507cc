"""The same value is the same token when rows are scored, or its column is refused by name."""

from __future__ import annotations

import decimal
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from afm_dist.errors import DataError
from data_prep.protocol import Protocol
from data_prep.scoring.source import open_source
from data_prep.sources.tabular import TabularSource
from data_prep.sources.tabular_columns import ColumnOptions
from tests.data_prep.scoring.conftest import write_csv
from tests.data_prep.scoring.models import Trained, train

IDS = [7, 8, 2**53 + 1]


def _csv(path: Path, values: list[str]) -> Path:
    return write_csv(path, ["user"], [[value] for value in values])


def _parquet(path: Path, values: pa.Array) -> Path:
    pq.write_table(pa.table({"user": values}), path)
    return path


def _trained(folder: Path, values: pa.Array | list[str]) -> Trained:
    """A model of a Parquet file, or of a CSV."""
    folder.mkdir()
    clicks = [i % 2 for i in range(8 * len(values))]
    if isinstance(values, list):
        log = write_csv(
            folder / "log", ["user", "click"], [[values[i // 8], str(c)] for i, c in enumerate(clicks)]
        )
    else:
        log = folder / "log"
        pq.write_table(pa.table({"user": pa.concat_arrays([values] * 8), "click": clicks}), log)
    source = TabularSource([str(log)], ColumnOptions(label="click", categorical=("user",)))
    return train(log, source, Protocol(threshold=1, validation_share=0, test_share=0), folder)


WAYS = {
    "integers in a CSV": [str(i) for i in IDS],
    "integers": pa.array(IDS),
    "decimals of scale 0": pa.array([decimal.Decimal(i) for i in IDS], pa.decimal128(20, 0)),
    "texts": pa.array([str(i) for i in IDS]),
    "a dictionary": pa.array(IDS).dictionary_encode(),
}


@pytest.mark.parametrize("then", WAYS)
@pytest.mark.parametrize("now", WAYS)
def test_an_id_is_the_same_token_in_every_type(tmp_path: Path, then: str, now: str) -> None:
    values = WAYS[now]
    rows = tmp_path / "rows"
    _csv(rows, values) if isinstance(values, list) else _parquet(rows, values)

    trained = _trained(tmp_path / "trained", WAYS[then])

    assert trained.predict(tmp_path / "scores.parquet", rows).unknown == {"user": 0.0}


@pytest.mark.parametrize("then", ["integers in a CSV", "integers"])
def test_an_id_is_the_same_token_however_a_csv_spells_it(tmp_path: Path, then: str) -> None:
    trained = _trained(tmp_path / "trained", WAYS[then])

    summary = trained.predict(tmp_path / "s.parquet", _csv(tmp_path / "rows", ["7.0", " 8", "+7", "8."]))

    assert summary.unknown == {"user": 0.0}


def test_a_padded_integer_is_the_integer_where_the_model_was_trained_on_integers(tmp_path: Path) -> None:
    rows = _csv(tmp_path / "rows", ["007", "08"])

    assert _trained(tmp_path / "a", WAYS["integers"]).predict(tmp_path / "s", rows).unknown == {"user": 0.0}
    assert _trained(tmp_path / "b", ["007", "08"]).predict(tmp_path / "s", rows).unknown == {"user": 0.0}


@pytest.mark.parametrize("codes", [["007", "8"], ["a", "7.0"]])
def test_integers_that_cannot_spell_the_codes_of_the_model_are_refused(
    tmp_path: Path, codes: list[str]
) -> None:
    trained = _trained(tmp_path / "trained", codes)

    with pytest.raises(
        DataError, match=r"rows: column 'user' holds integers, and the model knows '(007|7\.0)'"
    ):
        trained.predict(tmp_path / "scores", _parquet(tmp_path / "rows", pa.array([7, 8])))


def test_floats_are_refused_where_the_model_was_trained_on_integers(tmp_path: Path) -> None:
    for number, then in enumerate(("integers in a CSV", "integers")):
        trained = _trained(tmp_path / str(number), WAYS[then])
        with pytest.raises(DataError, match="column 'user' holds double values where"):
            trained.source(_parquet(tmp_path / "rows", pa.array([7.0, None])))


def test_tokens_of_an_earlier_release_are_read_as_they_were(tmp_path: Path) -> None:
    trained = _trained(tmp_path / "trained", ["a", "7.0"])
    rows = _csv(tmp_path / "rows", ["7.0"])
    facts = {**trained.manifest.facts, "spellings": {"user": "decimal128(20, 0)"}}

    assert trained.predict(tmp_path / "scores", rows).unknown == {"user": 0.0}
    decimals = _parquet(tmp_path / "decimals", WAYS["decimals of scale 0"])
    open_source([str(decimals)], replace(trained.manifest, facts=facts))
