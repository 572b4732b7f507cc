from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from afm_dist.dataset.description import HEADS, THRESHOLDS, TOP_TOKENS, Description
from afm_dist.dataset.manifest import Manifest
from afm_dist.errors import DataError
from tests.dataset.raw_rows import HELD_OUT, TOKEN_FIELDS, Row, known_tokens, random_rows, write_dataset

Described = tuple[list[Row], int, Description]


@pytest.fixture(
    params=[(900, 1), (900, 4), (60, 2), (200, 7)], ids=lambda p: f"{p[0]} rows, threshold {p[1]}"
)
def described(request: pytest.FixtureRequest, tmp_path: Path) -> Described:
    n_rows, threshold = request.param
    rows = random_rows(n_rows, seed=n_rows + threshold)
    write_dataset(tmp_path / "tiny", rows, threshold)
    return rows, threshold, Description.of(Manifest.load(str(tmp_path / "tiny")))


def in_training(rows: list[Row], name: str) -> list[str]:
    return [row.tokens[name] for row in rows if row.split == "train"]


def test_coverage_is_the_share_of_training_rows_whose_token_has_an_id(described: Described) -> None:
    rows, threshold, description = described

    for field in description.categorical:
        known = set(known_tokens(rows, field.name, threshold))
        tokens = in_training(rows, field.name)
        assert field.cardinality == len(known) + 1
        assert field.coverage == sum(token in known for token in tokens) / len(tokens)


def test_the_most_frequent_ids_make_up_what_their_rows_say(described: Described) -> None:
    rows, threshold, description = described

    for field in description.categorical:
        tokens = in_training(rows, field.name)
        known = known_tokens(rows, field.name, threshold)
        sums = [sum(token in known[:ids] for token in tokens) for ids in range(len(known) + 1)]
        assert field.heads == tuple(sums[min(ids, len(known))] / len(tokens) for ids in HEADS)
        enough = [ids for ids, covered in enumerate(sums) if 10 * covered >= 9 * len(tokens)]
        assert field.ids_for_90_percent == (enough[0] if enough else None)


def test_the_top_tokens_are_the_most_frequent_with_their_shares(described: Described) -> None:
    rows, threshold, description = described

    for field in description.categorical:
        tokens = in_training(rows, field.name)
        wanted = known_tokens(rows, field.name, threshold)[:TOP_TOKENS]
        assert [top.token for top in field.top] == wanted
        assert [top.share for top in field.top] == [tokens.count(t) / len(tokens) for t in wanted]


def test_a_threshold_leaves_what_a_preparation_with_it_would_leave(described: Described) -> None:
    rows, threshold, description = described

    assert [effect.threshold for effect in description.thresholds] == [
        threshold,
        *(t for t in THRESHOLDS if t > threshold),
    ]
    for effect in description.thresholds:
        known = {name: set(known_tokens(rows, name, effect.threshold)) for name in TOKEN_FIELDS}
        covered = {
            name: sum(token in known[name] for token in in_training(rows, name)) for name in TOKEN_FIELDS
        }
        n_training = len(in_training(rows, "ad"))
        assert effect.ids == sum(len(tokens) + 1 for tokens in known.values())
        assert effect.coverage == pytest.approx(sum(covered.values()) / (3 * n_training), rel=1e-12)
        assert effect.least_coverage == min(covered.values()) / n_training
        assert covered[effect.least_covered] == min(covered.values())


def test_splits_and_facts_are_those_of_the_rows(described: Described) -> None:
    rows, threshold, description = described

    assert [split.name for split in description.splits] == ["train", *HELD_OUT]
    for split in description.splits:
        labels = [row.label for row in rows if row.split == split.name]
        assert (split.rows, split.positives, split.shards) == (len(labels), sum(labels), 3)
        assert split.label_rate == sum(labels) / len(labels)
    for field in description.categorical:
        missing = sum(row.tokens[field.name] == "" for row in rows)
        assert field.missing_share == missing / len(rows)
        known = known_tokens(rows, field.name, threshold)
        for name in HELD_OUT:
            here = [row.tokens[field.name] for row in rows if row.split == name]
            assert field.unknown_share[name] == sum(token not in known for token in here) / len(here)
    (age,) = description.numeric
    assert (age.mean, age.deviation, age.transform) == (1.25, 2.5, "log")
    assert age.missing_share == sum(row.age is None for row in rows) / len(rows)


def test_a_description_is_plain_values_named_after_the_directory(described: Described) -> None:
    _, threshold, description = described

    plain = json.loads(json.dumps(asdict(description), allow_nan=False))

    assert (plain["name"], plain["threshold"], plain["rows_rejected"]) == ("tiny", threshold, 2)
    assert plain["inputs"] == [{"name": "log.csv", "bytes": 321, "sha256": "ab" * 32}]
    assert plain["best"] == {"auc": 0.75, "log_loss": 0.4, "split": "test"}


@pytest.fixture
def tiny(tmp_path: Path) -> Manifest:
    return write_dataset(tmp_path / "tiny", random_rows(200, seed=5), 2)


def test_a_dataset_without_facts_is_described_by_its_vocabularies(tiny: Manifest) -> None:
    known = Description.of(tiny)

    bare = Description.of(replace(tiny, facts={}, sources=({},)))

    assert [f.coverage for f in bare.categorical] == [f.coverage for f in known.categorical]
    assert [f.top for f in bare.categorical] == [f.top for f in known.categorical]
    assert [(split.rows, split.label_rate) for split in bare.splits] == [
        (split.rows, None) for split in known.splits
    ]
    assert {(f.missing_share, len(f.unknown_share)) for f in bare.categorical} == {(None, 0)}
    assert (bare.threshold, bare.thresholds, bare.best, bare.held_out) == (None, (), None, ())


@pytest.mark.parametrize(
    "facts",
    [
        {"missing_share": 3},
        {"missing_share": {"ad": "a half"}},
        {"unknown_share": [0.1]},
        {"unknown_share": {"test": 0.1}},
        {"splits": {"train": 5}},
        {"threshold": "two"},
        {"bayes_auc": [0.7]},
    ],
)
def test_facts_that_are_not_what_they_say_are_refused(tiny: Manifest, facts: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"tiny/manifest\.json: damaged facts") as error:
        Description.of(replace(tiny, facts={**tiny.facts, **facts}))
    assert "\n" not in str(error.value)


def test_without_training_rows_there_is_nothing_to_describe(tiny: Manifest) -> None:
    with pytest.raises(DataError, match="no 'train' rows"):
        Description.of(replace(tiny, splits={"test": tiny.splits["test"]}))


def test_of_numeric_fields_alone_no_vocabulary_is_read(tiny: Manifest) -> None:
    described = Description.of(replace(tiny, fields=tiny.numeric, vocabulary={}))

    assert (described.ids, described.categorical, described.thresholds) == (0, (), ())
    assert [field.name for field in described.numeric] == ["age"]


def remove(path: Path) -> None:
    path.unlink()


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def overwrite(path: Path) -> None:
    path.write_bytes(b"x" * path.stat().st_size)


@pytest.mark.parametrize("damage", [remove, truncate, overwrite])
def test_a_damaged_vocabulary_is_refused_by_name(tiny: Manifest, damage: Callable[[Path], None]) -> None:
    damage(Path(tiny.location, "vocabulary", "site.parquet"))

    with pytest.raises(DataError, match=r"vocabulary/site\.parquet") as error:
        Description.of(tiny)
    assert "\n" not in str(error.value)
