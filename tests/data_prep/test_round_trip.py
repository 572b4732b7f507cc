"""Encode, then decode: the raw tokens above the threshold come back, in every format."""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from data_prep import encode, vocabulary
from data_prep.pipeline import prepare
from data_prep.protocol import ColumnRule, Protocol
from data_prep.sources.avazu import HEADER, NAMES, AvazuSource
from data_prep.sources.criteo import CriteoSource
from data_prep.sources.source import Source
from data_prep.sources.tabular import TabularSource
from data_prep.sources.tabular_columns import ColumnOptions
from data_prep.split import SPLITS, RandomSplit
from tests.data_prep.in_this_process import in_this_process
from tests.data_prep.prepared import decoded

RawRow = tuple[str, str, str, str]
"""Label, a number or nothing, two tokens or nothing: as they stand in the log."""

LABEL = st.sampled_from("01")
NUMBER = st.sampled_from(["", "0", "-0", "7"]) | st.integers(-(10**12), 10**12).map(str)


def _rows(token: st.SearchStrategy[str], number: st.SearchStrategy[str]) -> st.SearchStrategy[list[RawRow]]:
    """Rows whose tokens repeat."""
    few = st.lists(token, min_size=1, max_size=5).flatmap(lambda tokens: st.sampled_from(["", *tokens]))
    return st.lists(st.tuples(LABEL, number, few, token), min_size=5, max_size=30)


def _short(text: str) -> str:
    return text.encode()[:8].decode(errors="ignore")


HEX = st.integers(0, 2**32 - 1).map(lambda value: f"{value:08x}") | st.sampled_from(
    ["", "00000000", "ffffffff", "deadbeef"]
)
SHORT = st.text(st.characters(codec="utf-8", exclude_characters=",\n\r\0"), max_size=8).map(_short)
# The csv module leaves a lone carriage return unquoted.
ANY = st.text(st.characters(codec="utf-8", exclude_characters="\r\0"), max_size=6)
DECIMAL = NUMBER | st.floats(allow_nan=False, allow_infinity=False, width=32).map(repr)


def _criteo(rows: list[RawRow], path: Path, block_bytes: int) -> Source:
    empty = "\t" * 12
    path.write_text(
        "".join(f"{label}\t{number}{empty}\t{a}\t{b}{chr(9) * 24}\n" for label, number, a, b in rows)
    )
    return CriteoSource([str(path)], block_bytes=block_bytes)


def _avazu(rows: list[RawRow], path: Path, block_bytes: int) -> Source:
    lines = [HEADER]
    for label, _, a, b in rows:
        fields = dict.fromkeys(NAMES, "") | {"id": "123456789", "click": label, "C1": a, "C14": b}
        lines.append(",".join(fields.values()))
    path.write_text("\n".join(lines) + "\n", newline="", encoding="utf-8")
    return AvazuSource([str(path)], block_bytes=block_bytes)


def _csv(rows: list[RawRow], path: Path, block_bytes: int) -> Source:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerows([["click", "price", "ad", "site"], *rows])
    path.write_text(file.getvalue(), newline="", encoding="utf-8")
    columns = ColumnOptions(label="click", numeric=("price",), categorical=("ad", "site"))
    return TabularSource([str(path)], columns, block_bytes=block_bytes)


FORMATS: dict[str, tuple[Callable[[list[RawRow], Path, int], Source], st.SearchStrategy, list[str]]] = {
    "criteo": (_criteo, _rows(HEX, NUMBER), ["I1", "C1", "C2"]),
    "avazu": (_avazu, _rows(SHORT, st.just("")), ["C1", "C14"]),
    "csv": (_csv, _rows(ANY, DECIMAL), ["price", "ad", "site"]),
}


@pytest.mark.parametrize("name", FORMATS)
# Shrinking what takes a whole preparation to judge would take minutes.
@settings(max_examples=15, deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate))
@given(
    data=st.data(),
    threshold=st.integers(1, 3),
    seed=st.integers(0, 1000),
    block_bytes=st.integers(150, 2_000),
    rows_per_shard=st.integers(3, 20),
    range_tokens=st.sampled_from([3, 1_000]),
)
def test_decoding_gives_back_the_raw_tokens_above_the_threshold(
    tmp_path_factory: pytest.TempPathFactory,
    name: str,
    data: st.DataObject,
    threshold: int,
    seed: int,
    block_bytes: int,
    rows_per_shard: int,
    range_tokens: int,
) -> None:
    write, some_rows, fields = FORMATS[name]
    rows = data.draw(some_rows)
    splits = RandomSplit(seed=seed, validation_share=0.2, test_share=0.2)(0, np.arange(len(rows)))
    if not (splits == 0).any():
        return
    folder = tmp_path_factory.mktemp(name)
    source = write(rows, folder / "log", block_bytes)
    protocol = Protocol(
        seed=seed,
        threshold=threshold,
        validation_share=0.2,
        test_share=0.2,
        rows_per_shard=rows_per_shard,
        max_bad_rows=0,
        columns=tuple(
            ColumnRule(column=f.name, transform=None) for f in source.fields if f.name not in fields
        ),
    )

    with in_this_process() as patch:
        patch.setattr(vocabulary, "RANGE_TOKENS", range_tokens)
        patch.setattr(encode, "ROW_GROUP_ROWS", 4)
        made = prepare(source, str(folder / "data"), protocol)

    assert [f.name for f in made.fields] == fields
    train = [row for row, split in zip(rows, splits, strict=True) if split == 0]
    counts = [Counter(row[position] for row in train) for position in range(4)]
    numeric = made.numeric[0] if made.numeric else None
    for index, split in enumerate(SPLITS):
        wanted = [row for row, of_row in zip(rows, splits, strict=True) if of_row == index]
        got = decoded(made, split)
        assert [[str(row[0]), *row[-2:]] for row in got] == [
            [row[0], *(row[i] if counts[i][row[i]] >= threshold else None for i in (2, 3))] for row in wanted
        ]
        if numeric is not None:
            logs = [None if row[1] is None else row[1] * numeric.deviation + numeric.mean for row in got]
            assert logs == [_near_log(row[1]) for row in wanted]


def _near_log(text: str) -> object:
    """What the logarithm of a number is compared with: as near as float32 after scaling is."""
    if not text:
        return None
    value = float(text)
    return pytest.approx(math.copysign(math.log1p(abs(value)), value), rel=1e-4, abs=1e-4)
