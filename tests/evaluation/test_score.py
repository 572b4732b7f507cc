from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from afm_dist.dataset.manifest import Manifest
from afm_dist.dataset.reader import read_shard
from afm_dist.errors import DataError
from afm_dist.evaluation.score import Quality, evaluate_model, score_shards
from afm_dist.evaluation.scored_rows import ScoredRows
from afm_dist.models import build_model
from tests.small_dataset import FIELDS


class FirstId(nn.Module):
    """The logit is the first id over ten."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(0.1))

    def forward(self, ids: Tensor, numeric: Tensor) -> Tensor:
        return ids[:, 0] * self.slope


class Diverged(FirstId):
    """As above, but NaN where the first number is above 2."""

    def forward(self, ids: Tensor, numeric: Tensor) -> Tensor:
        return torch.where(numeric[:, 0] > 2, torch.nan, super().forward(ids, numeric))


def test_a_split_is_judged_by_all_its_rows(dataset: Manifest) -> None:
    whole = [read_shard(dataset, shard) for shard in dataset.shards("train")]
    labels = np.concatenate([shard.labels.numpy() for shard in whole])
    logits = np.concatenate([shard.ids[:, 0].numpy() for shard in whole]) / 10

    quality = Quality.of(score_shards(FirstId(), dataset, dataset.shards("train")))

    assert quality.rows == dataset.rows("train")
    assert quality.auc == pytest.approx(roc_auc_score(labels, logits), abs=1e-12)
    assert quality.calibration.ratio == pytest.approx(
        (1 / (1 + np.exp(-logits))).sum() / labels.sum(), rel=1e-6
    )


def test_workers_may_share_the_shards_in_any_way(dataset: Manifest) -> None:
    shards = dataset.shards("train")
    parts = [score_shards(FirstId(), dataset, some) for some in (shards[1::2], (), shards[::2])]

    whole = score_shards(FirstId(), dataset, shards)

    assert Quality.of(ScoredRows.merged(parts)) == Quality.of(whole)


@pytest.mark.parametrize("training", [True, False])
def test_scoring_leaves_the_mode_of_the_model(dataset: Manifest, training: bool) -> None:
    model = FirstId().train(training)
    score_shards(model, dataset, dataset.shards("test"))
    assert model.training is training


def test_a_logit_that_is_not_finite_is_named_by_shard_and_row(dataset: Manifest) -> None:
    shards = dataset.shards("train")
    numbers = [read_shard(dataset, shard).numeric[:, 0] for shard in shards]
    i = next(i for i, shard in enumerate(numbers) if (shard > 2).any())
    row = int((numbers[i] > 2).nonzero()[0])

    with pytest.raises(DataError, match=rf"{shards[i].path}: score of row {row} is nan.*diverged model"):
        score_shards(Diverged(), dataset, shards)


@pytest.mark.parametrize("label", [0, 1])
def test_rows_of_one_label_have_a_log_loss_and_no_auc(label: int) -> None:
    quality = Quality.of(ScoredRows.of(np.full(3, label), np.zeros(3)))

    assert quality.auc is None
    assert quality.log_loss == pytest.approx(np.log(2))
    assert quality.calibration.expected_error == pytest.approx(0.5)
    # Expected clicks are divided by those there were.
    assert quality.calibration.ratio == (None if label == 0 else pytest.approx(0.5))


def test_of_no_rows_nothing_is_known() -> None:
    quality = Quality.of(ScoredRows.merged([]))

    assert (quality.rows, quality.auc, quality.log_loss) == (0, None, None)
    assert (quality.calibration.ratio, quality.calibration.expected_error) == (None, None)
    assert quality.calibration.to_json() == []


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_a_split_without_rows_is_scored_as_one(dataset: Manifest) -> None:
    model = build_model("deepfm", FIELDS, {"embedding_dim": 4, "hidden": (8, 8), "dropout": 0.5})
    empty = replace(dataset, splits={**dataset.splits, "test": ()})
    assert evaluate_model(model, empty, "test").rows == 0


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_ray_tasks_give_the_figures_of_this_process(dataset: Manifest) -> None:
    model = build_model("deepfm", FIELDS, {"embedding_dim": 4, "hidden": (8, 8), "dropout": 0.5})
    here = Quality.of(score_shards(model, dataset, dataset.shards("train")))
    there = evaluate_model(model, dataset, "train")
    assert (there.rows, there.auc, there.log_loss) == pytest.approx((here.rows, here.auc, here.log_loss))
