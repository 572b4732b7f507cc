from __future__ import annotations

import pytest

from afm_dist.training.recipe import Recipe
from afm_dist.training.wording import describe


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        (Recipe(batch_size=2000, learning_rate=3e-4), "batches of 2,000 at learning rate 0.0003"),
        (Recipe(epochs=3), "3 passes over the training split"),
        (Recipe(), "all weights are trained"),
        (Recipe(trained="dense"), "the tables are frozen"),
        (Recipe(trained="factors"), "only what compression made is trained"),
        (Recipe(average=True), "the average of the weights at all evaluations so far"),
        (Recipe(), "the weights are not averaged"),
        (Recipe(distill_weight=0.5, distill_temperature=2), "0.5 of the loss is against the predictions"),
        (Recipe(distill_weight=0.5, distill_temperature=2), "at temperature 2"),
        (Recipe(), "nothing is distilled"),
        (Recipe(patience=2, evaluations_per_epoch=4), "after 2 evaluations without a better validation AUC"),
    ],
)
def test_a_recipe_says_how_it_trains(recipe: Recipe, words: str) -> None:
    assert words in describe(recipe)


def test_patience_that_cannot_run_out_is_not_mentioned() -> None:
    assert "it ends" not in describe(Recipe(patience=4, evaluations_per_epoch=4))
