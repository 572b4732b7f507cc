from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from afm_dist import storage
from afm_dist.compression.config import MethodConfig
from afm_dist.compression.plan import Plan, PlanEntry
from afm_dist.errors import DataError, OptionError
from afm_dist.methods.low_rank.config import LowRank
from afm_dist.methods.low_rank.ranks import using
from afm_dist.methods.rounding.config import Rounding, rounding

PLAN = Plan(
    entries=(
        PlanEntry("mlp.3", LowRank(factors="afm", rank=64, activation="shifted", kappa=2.5)),
        PlanEntry("mlp.6", LowRank(factors="svd", rank=3, activation="plain")),
        PlanEntry("embedding", LowRank(factors="afm", rank=2, folded_into="mlp.0")),
    )
)
# As it was written by releases that knew low rank and rounding only.
VERSION_1 = {
    "format_version": 1,
    "entries": [
        {
            "name": "mlp.3",
            "method": "afm",
            "rank": 64,
            "activation": "shifted",
            "kappa": 2.5,
            "folded_into": None,
        },
        {
            "name": "mlp.6",
            "method": "svd",
            "rank": 3,
            "activation": "plain",
            "kappa": 2.0,
            "folded_into": None,
        },
        {
            "name": "embedding",
            "method": "afm",
            "rank": 2,
            "activation": "none",
            "kappa": 2.0,
            "folded_into": "mlp.0",
        },
    ],
}


def low_rank(**changes: Any) -> LowRank:
    return LowRank(**{"rank": 2, **changes})


def test_a_plan_survives_json(tmp_path: Path) -> None:
    PLAN.save(str(tmp_path / "plan.json"))

    assert Plan.load(str(tmp_path / "plan.json")) == PLAN


def test_a_plan_of_version_1_is_read() -> None:
    assert Plan.from_json(VERSION_1) == PLAN


def test_rows_to_round_are_read_from_version_1_behind_all_entries() -> None:
    value = VERSION_1 | {"bfloat16": ["linear", "embedding"]}

    assert Plan.from_json(value) == PLAN + rounding("linear", "embedding")


def test_ranks_by_field_and_absorbed_weights_are_read_from_version_1() -> None:
    entry = VERSION_1["entries"][2] | {"rank": 3, "ranks": {"site": 3, "ad": 0}, "absorbs": "linear"}

    (read,) = Plan.from_json(VERSION_1 | {"entries": [entry]}).entries

    assert read == PlanEntry(
        "embedding", LowRank(rank=3, ranks={"site": 3, "ad": 0}, folded_into="mlp.0", absorbs="linear")
    )


@pytest.mark.parametrize(
    "config",
    [
        low_rank(absorbs="linear"),
        low_rank().with_rank({"site": 3, "ad": 0, "hour": 1}),
        low_rank(factors="weighted", activation="plain", kappa=1.5),
        Rounding(),
    ],
    ids=repr,
)
def test_every_config_survives_json(config: MethodConfig) -> None:
    plan = Plan(entries=(PlanEntry("table", config),))

    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("linear", "bfloat16 'linear': a list of names"),
        (None, "bfloat16 None: a list of names"),
        ([1, 2], "bfloat16 names 1: the name of a module is needed"),
        (["linear", "embedding", "linear"], "bfloat16 names 'linear' twice"),
    ],
    ids=str,
)
def test_names_of_what_version_1_rounds_are_checked(names: Any, message: str) -> None:
    with pytest.raises(DataError, match=rf"^plan\.json: plan not understood \({message}"):
        Plan.from_json(VERSION_1 | {"bfloat16": names}, source="plan.json")


@pytest.mark.parametrize("value", [VERSION_1, PLAN.to_json()], ids=["version-1", "version-2"])
def test_what_a_plan_does_not_know_is_refused_by_name(value: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"^plan\.json: .*'bfloat_16'"):
        Plan.from_json(value | {"bfloat_16": ["linear"]}, source="plan.json")


def test_a_rank_of_a_field_is_its_own_or_that_of_all() -> None:
    ranks = {"site": 3, "ad": 0, "hour": 1}
    config = low_rank().with_rank(ranks)

    assert [config.rank_of(field) for field in ranks] == [3, 0, 1]
    assert (config.rank, config.rank_of(None), low_rank().rank_of("site")) == (3, 3, 2)


def test_equal_ranks_of_all_fields_are_one_rank() -> None:
    config = low_rank()

    assert config.with_rank({"site": 5, "ad": 5}) == config.with_rank(5)
    assert config.with_rank({"site": 0, "ad": 0}).ranks == {"site": 0, "ad": 0}
    assert config.with_rank({"site": 5, "ad": 1}).with_rank(4).ranks is None


@pytest.mark.parametrize(
    ("rank", "ranks", "message"),
    [
        (1, {"site": 1, "ad": -1}, "rank -1 of field 'ad'"),
        (2, {"site": 2, "ad": 0.5}, "rank 0.5 of field 'ad'"),
        (1, {"site": 2, "ad": 0}, "rank 1: with ranks by field it is the largest of them, 2"),
        (1, {}, "ranks {}: a rank for each field is needed"),
        (1, [1, 2], r"ranks \[1, 2\]"),
    ],
)
def test_ranks_by_field_are_checked(rank: int, ranks: Any, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        LowRank(rank=rank, ranks=ranks)


def test_adding_plans_keeps_their_order() -> None:
    first, rest = Plan(entries=PLAN.entries[:1]), Plan(entries=PLAN.entries[1:])

    assert first + rest == PLAN
    assert (rest + first).modules == ["mlp.6", "embedding", "mlp.3"]


def test_using_changes_every_entry_and_leaves_the_plan() -> None:
    changed = using(PLAN, factors="svd")

    assert [entry.config.label for entry in changed.entries] == ["svd", "svd", "svd"]
    assert changed.modules == PLAN.modules
    assert [entry.config.label for entry in PLAN.entries] == ["afm", "svd", "afm"]


@pytest.mark.parametrize("version", [None, 0, 3, True, "1", "two"])
def test_an_unknown_version_is_refused_by_name(tmp_path: Path, version: Any) -> None:
    path = str(tmp_path / "plan.json")
    storage.write_json(path, {**PLAN.to_json(), "format_version": version})

    with pytest.raises(DataError, match=rf"plan\.json: plan format version {version!r} is unknown"):
        Plan.load(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"factors": "tucker"}, "factors 'tucker': choose from afm, svd, weighted"),
        ({"activation": "gelu"}, "activation 'gelu': choose from none, plain, shifted"),
        ({"rank": 0}, "rank 0"),
        ({"rank": "8"}, "rank '8'"),
        ({"rank": 2.5}, "rank 2.5"),
        ({"rank": True}, "rank True"),
        ({"kappa": "2"}, "kappa '2'"),
        ({"folded_into": 3}, "folded_into 3"),
        ({"colour": "red"}, "no field 'colour'"),
    ],
    ids=str,
)
def test_a_config_that_is_not_understood_is_refused_by_name(change: dict[str, Any], message: str) -> None:
    value = PLAN.to_json()
    value["entries"][0]["config"] |= change

    with pytest.raises(DataError, match=r"^plan\.json, entry 0 .*mlp\.3.*: ") as error:
        Plan.from_json(value, source="plan.json")

    assert message in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "tucker"}, "method 'tucker' is unknown; known are "),
        ({"method": ["low-rank"]}, "is unknown"),
        ({"version": 2}, "version 2 of method 'low-rank' is unknown"),
        ({"version": True}, "version True of method 'low-rank' is unknown"),
        ({"config": [1]}, "is no object"),
        ({"module": 7}, "names module 7"),
        ({"rank": 3}, "and nothing else"),
    ],
    ids=str,
)
def test_an_entry_that_is_not_understood_is_refused_by_name(change: dict[str, Any], message: str) -> None:
    value = PLAN.to_json()
    value["entries"][0] |= change

    with pytest.raises(DataError, match=r"^plan\.json, entry 0") as error:
        Plan.from_json(value, source="plan.json")

    assert message in str(error.value)


@pytest.mark.parametrize(
    "change", [{"method": "tucker"}, {"rank": 0}, {"rank": "8"}, {"colour": "red"}], ids=str
)
def test_an_entry_of_version_1_that_is_not_understood_is_refused(change: dict[str, Any]) -> None:
    entry = VERSION_1["entries"][0] | change

    with pytest.raises(DataError, match=r"^plan\.json: plan not understood"):
        Plan.from_json(VERSION_1 | {"entries": [entry]}, source="plan.json")


@pytest.mark.parametrize(
    "value",
    [
        *([], 7, None, "plan", {}),
        *({"format_version": version} for version in (1, 2)),
        *({"format_version": version, "entries": [3]} for version in (1, 2)),
        {"format_version": 2, "entries": {}},
    ],
    ids=str,
)
def test_what_is_not_a_plan_is_refused(value: Any) -> None:
    with pytest.raises(DataError, match=r"^plan\.json"):
        Plan.from_json(value, source="plan.json")


@pytest.mark.parametrize(
    ("module", "config"), [(7, low_rank()), ("mlp.3", {"rank": 1}), ("mlp.3", None)], ids=str
)
def test_an_entry_written_by_hand_is_checked_too(module: Any, config: Any) -> None:
    with pytest.raises(OptionError):
        PlanEntry(module, config)
