"""Which labels a split has: from what the manifest says, or else from its shards."""

from __future__ import annotations

from dataclasses import replace

import pytest

from afm_dist.dataset import reader
from afm_dist.dataset.labels import Labels, check_labels, warn_of_dataset, warn_of_undefined
from afm_dist.dataset.manifest import Manifest
from afm_dist.errors import DataError
from tests.small_dataset import relabelled


def with_facts(dataset: Manifest, **positives: object) -> Manifest:
    splits = {name: {"rows": dataset.rows(name), "positives": found} for name, found in positives.items()}
    return replace(dataset, facts={"splits": splits})


@pytest.mark.parametrize(("positives", "present"), [(0, {0}), (150, {1}), (1, {0, 1}), (149, {0, 1})])
def test_the_manifest_says_which_labels_there_are(
    dataset: Manifest, monkeypatch: pytest.MonkeyPatch, positives: int, present: set[int]
) -> None:
    monkeypatch.setattr(reader, "read_shard", lambda *_: pytest.fail("a shard was read"))

    labels = Labels.of(with_facts(dataset, test=positives), "test")

    assert (labels.rows, labels.present) == (150, present)


def test_shards_are_read_until_both_labels_were_seen(
    dataset: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    real = reader.read_shard
    monkeypatch.setattr(
        reader, "read_shard", lambda data, shard: (read.append(shard.path), real(data, shard))[1]
    )

    assert Labels.of(dataset, "train").present == {0, 1}
    assert read == [dataset.shards("train")[0].path]


@pytest.mark.parametrize("label", [0, 1])
@pytest.mark.parametrize("message", [None, -1, 10**6, "many", True, 2.5])
def test_without_a_number_of_positives_the_shards_say_it(
    dataset: Manifest, label: int, message: object
) -> None:
    one = relabelled(dataset, "validation", label)
    if message is not None:
        one = with_facts(one, validation=message)
    labels = Labels.of(one, "validation")
    assert labels.present == {label}
    assert labels.lack == f"the validation split has only label {label} (500 rows)"


@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_split_to_learn_from_or_to_choose_by_needs_both_labels(dataset: Manifest, split: str) -> None:
    check_labels(dataset)
    with pytest.raises(DataError, match=rf"the {split} split has only label 0 .*--validation-from"):
        check_labels(relabelled(dataset, split, 0))
    with pytest.raises(DataError, match=rf"the {split} split has no rows"):
        check_labels(replace(dataset, splits={**dataset.splits, split: ()}))


def test_a_split_to_measure_on_does_not(dataset: Manifest, capsys: pytest.CaptureFixture[str]) -> None:
    warn_of_undefined(Labels.of(dataset, "test"))
    one = relabelled(dataset, "test", 0)
    check_labels(one)
    warn_of_undefined(Labels.of(one, "test"))
    (warning,) = capsys.readouterr().err.splitlines()
    assert "the test split has only label 0 (150 rows): AUC is undefined" in warning


def test_who_makes_a_dataset_hears_what_will_be_refused(capsys: pytest.CaptureFixture[str]) -> None:
    warn_of_dataset(
        [Labels.counted("train", 9, 3), Labels.counted("validation", 4, 4), Labels.counted("test", 0, 0)]
    )
    validation, test = capsys.readouterr().err.splitlines()
    assert "the validation split has only label 1 (4 rows)" in validation and "refuse" in validation
    assert "the test split has no rows: AUC and log loss are undefined" in test


def test_shards_without_rows_are_no_rows(dataset: Manifest) -> None:
    empty = replace(dataset.shards("test")[0], rows=0)
    none = replace(dataset, splits={**dataset.splits, "test": (empty,)})
    assert none.rows("test") == 0
    with pytest.raises(DataError, match="no 'test' rows"):
        none.shards("test")
