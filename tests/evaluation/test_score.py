from __future__ import annotations

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

    quality = Quality.of(score_shards(FirstId(), dataset, dataset.shards("train")), "train")

    assert quality.rows == dataset.rows("train")
    assert quality.auc == pytest.approx(roc_auc_score(labels, logits), abs=1e-12)
    assert quality.calibration.ratio == pytest.approx(
        (1 / (1 + np.exp(-logits))).sum() / labels.sum(), rel=1e-6
    )


def test_workers_may_share_the_shards_in_any_way(dataset: Manifest) -> None:
    shards = dataset.shards("train")
    parts = [score_shards(FirstId(), dataset, some) for some in (shards[1::2], (), shards[::2])]

    whole = score_shards(FirstId(), dataset, shards)

    assert Quality.of(ScoredRows.merged(parts), "train") == Quality.of(whole, "train")


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


def test_quality_names_the_rows_it_cannot_judge() -> None:
    with pytest.raises(DataError, match=r"baseline on the test split: .*both labels"):
        Quality.of(ScoredRows.of(np.ones(3), np.zeros(3)), "baseline on the test split")


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_ray_tasks_give_the_figures_of_this_process(dataset: Manifest) -> None:
    model = build_model("deepfm", FIELDS, {"embedding_dim": 4, "hidden": (8, 8), "dropout": 0.5})
    here = Quality.of(score_shards(model, dataset, dataset.shards("train")), "train")
    there = evaluate_model(model, dataset, "train")
    assert (there.rows, there.auc, there.log_loss) == pytest.approx((here.rows, here.auc, here.log_loss))
