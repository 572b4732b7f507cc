from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from afm_dist import storage
from afm_dist.compression.plan import Plan, PlanEntry
from afm_dist.errors import DataError, OptionError

PLAN = Plan(
    entries=(
        PlanEntry(name="mlp.3", method="afm", rank=64, activation="shifted", kappa=2.5),
        PlanEntry(name="mlp.6", method="svd", rank=3, activation="plain"),
        PlanEntry(name="embedding", method="afm", rank=2, folded_into="mlp.0"),
    )
)


def test_a_plan_survives_json(tmp_path: Path) -> None:
    PLAN.save(str(tmp_path / "plan.json"))

    assert Plan.load(str(tmp_path / "plan.json")) == PLAN


def test_first_order_weights_to_absorb_survive_json() -> None:
    plan = PLAN.using(absorbs="linear")

    assert Plan.from_json(plan.to_json()) == plan


def test_rows_to_round_survive_json_and_only_plans_that_have_some_say_so() -> None:
    plan = replace(PLAN, bfloat16=("linear", "embedding"))

    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    assert PLAN.to_json().keys() == {"format_version", "entries"}


def test_plans_round_together_what_each_rounds() -> None:
    one, other = Plan(bfloat16=("a", "b")), replace(PLAN, bfloat16=["b", "c"])

    assert one + other == replace(PLAN, bfloat16=("a", "b", "c"))
    assert other.using(method="svd").bfloat16 == ("b", "c")
    assert (one + other).modules == ["mlp.3", "mlp.6", "embedding", "a", "b", "c"]


@pytest.mark.parametrize(
    ("names", "told"),
    [
        ("linear", "bfloat16 'linear': a list of names"),
        (None, "bfloat16 None: a list of names"),
        ({"linear"}, "bfloat16 {'linear'}: a list of names"),
        ([1, 2], "bfloat16 names 1: the name of a module is needed"),
        (["linear", "embedding", "linear"], "bfloat16 names 'linear' twice"),
    ],
    ids=str,
)
def test_names_of_what_is_rounded_are_checked(names: Any, told: str) -> None:
    with pytest.raises(OptionError, match=told):
        Plan(bfloat16=names)
    with pytest.raises(DataError, match=rf"^plan\.json: plan not understood \({told}"):
        Plan.from_json(PLAN.to_json() | {"bfloat16": names}, source="plan.json")


def test_what_a_plan_does_not_know_is_refused_by_name() -> None:
    with pytest.raises(DataError, match=r"^plan\.json: plan not understood .*'bfloat_16'"):
        Plan.from_json(PLAN.to_json() | {"bfloat_16": ["linear"]}, source="plan.json")


def test_ranks_by_field_survive_json() -> None:
    ranks = {"site": 3, "ad": 0, "hour": 1}
    plan = Plan(entries=(PLAN.entries[2].with_rank(ranks),))

    read = Plan.from_json(json.loads(json.dumps(plan.to_json())))

    assert read == plan
    assert [read.entries[0].rank_of(field) for field in ranks] == [3, 0, 1]
    assert read.entries[0].rank == 3


def test_equal_ranks_of_all_fields_are_one_rank() -> None:
    (entry,) = PLAN.entries[2:]

    assert entry.with_rank({"site": 5, "ad": 5}) == entry.with_rank(5)
    assert entry.with_rank({"site": 0, "ad": 0}).ranks == {"site": 0, "ad": 0}
    assert entry.with_rank({"site": 5, "ad": 1}).with_rank(4).ranks is None


@pytest.mark.parametrize(
    ("rank", "ranks", "told"),
    [
        (1, {"site": 1, "ad": -1}, "rank -1 of table, field 'ad'"),
        (2, {"site": 2, "ad": 0.5}, "rank 0.5 of table, field 'ad'"),
        (1, {"site": 2, "ad": 0}, "rank 1 of table: with ranks by field it is the largest of them, 2"),
        (1, {}, "ranks {} of table: a rank for each field is needed"),
        (1, [1, 2], r"ranks \[1, 2\] of table"),
    ],
)
def test_ranks_by_field_are_checked(rank: int, ranks: Any, told: str) -> None:
    with pytest.raises(OptionError, match=told):
        PlanEntry(name="table", method="afm", rank=rank, ranks=ranks)


def test_a_plan_that_absorbs_nothing_is_written_and_read_as_before_there_was_such_a_thing() -> None:
    value = PLAN.to_json()

    assert {key for entry in value["entries"] for key in entry} == {
        *("name", "method", "rank", "activation", "kappa", "folded_into"),
    }
    assert {entry.absorbs for entry in Plan.from_json(value).entries} == {None}


def test_adding_plans_keeps_their_order() -> None:
    first, rest = Plan(entries=PLAN.entries[:1]), Plan(entries=PLAN.entries[1:])

    assert first + rest == PLAN


def test_using_changes_every_entry_and_leaves_the_plan() -> None:
    changed = PLAN.using(method="svd")

    assert [entry.method for entry in changed.entries] == ["svd", "svd", "svd"]
    assert [entry.name for entry in changed.entries] == [entry.name for entry in PLAN.entries]
    assert [entry.method for entry in PLAN.entries] == ["afm", "svd", "afm"]


@pytest.mark.parametrize("version", [None, 0, 2, "1", "two"])
def test_an_unknown_version_is_refused_by_name(tmp_path: Path, version: Any) -> None:
    path = str(tmp_path / "plan.json")
    storage.write_json(path, {**PLAN.to_json(), "format_version": version})

    with pytest.raises(DataError, match=rf"plan\.json: plan format version {version!r} is unknown"):
        Plan.load(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "tucker"}, "method 'tucker' of mlp.3: choose from afm, svd, weighted"),
        ({"activation": "gelu"}, "activation 'gelu' of mlp.3: choose from none, plain, shifted"),
        ({"rank": 0}, "rank 0 of mlp.3"),
        ({"rank": "8"}, "rank"),
        ({"rank": 2.5}, "rank 2.5 of mlp.3"),
        ({"colour": "red"}, "colour"),
    ],
    ids=str,
)
def test_an_entry_that_is_not_understood_is_refused_by_name(change: dict[str, Any], message: str) -> None:
    value = PLAN.to_json()
    value["entries"][0] |= change

    with pytest.raises(DataError) as error:
        Plan.from_json(value, source="plan.json")

    assert str(error.value).startswith("plan.json: ")
    assert message in str(error.value)


@pytest.mark.parametrize(
    "value", [[], 7, None, "plan", {}, {"format_version": 1}, {"format_version": 1, "entries": [3]}]
)
def test_what_is_not_a_plan_is_refused(value: Any) -> None:
    with pytest.raises(DataError, match=r"^plan\.json: "):
        Plan.from_json(value, source="plan.json")


@pytest.mark.parametrize(
    "entry", [{"method": "qr", "rank": 1}, {"method": "afm", "rank": -2}], ids=["method", "rank"]
)
def test_a_plan_written_by_hand_is_checked_too(entry: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=r"mlp\.3"):
        PlanEntry(name="mlp.3", **entry)
