from __future__ import annotations

import pickle

import pytest

from afm_dist.errors import AfmError, DataError, OptionError, StageError


@pytest.mark.parametrize("kind", [AfmError, OptionError, DataError, StageError])
@pytest.mark.parametrize("separator", ["\n", "\r\n", "\n\n   ", "\t\n"])
def test_a_message_of_several_lines_becomes_one(kind: type[AfmError], separator: str) -> None:
    error = kind(f"part.parquet: damaged (no column{separator}resolved plan{separator}\n)")

    assert str(error) == "part.parquet: damaged (no column resolved plan )"


def test_spaces_inside_a_line_are_kept() -> None:
    assert str(DataError("/data/my  log.csv: empty")) == "/data/my  log.csv: empty"


@pytest.mark.parametrize("kind", [OptionError, DataError, StageError])
def test_an_error_survives_the_way_back_from_a_worker(kind: type[AfmError]) -> None:
    copy = pickle.loads(pickle.dumps(kind("what, where, fix")))

    assert (type(copy), str(copy)) == (kind, "what, where, fix")


def test_mistakes_in_options_exit_with_2_and_all_else_with_1() -> None:
    assert [kind.exit_code for kind in (OptionError, DataError, StageError)] == [2, 1, 1]
