"""Steps of a training: how many, how many rows they see, and after which the validation split is scored."""

from __future__ import annotations

from afm_dist.dataset.manifest import Manifest
from afm_dist.dataset.order import TrainingOrder
from afm_dist.training.recipe import Recipe


def total_steps(recipe: Recipe, manifest: Manifest) -> int:
    """Count the steps of a whole training."""
    return recipe.epochs * TrainingOrder(manifest=manifest, batch_size=recipe.batch_size, seed=0).steps


def rows_seen(step: int, recipe: Recipe, manifest: Manifest) -> int:
    """Count the rows of all batches before a step, again in each epoch."""
    rows = manifest.rows("train")
    epochs, steps = divmod(step, -(-rows // recipe.batch_size))
    return epochs * rows + min(steps * recipe.batch_size, rows)


def evaluation_steps(recipe: Recipe, manifest: Manifest) -> set[int]:
    """Choose the steps after which the validation split is scored: evenly, and at each epoch's end.

    Where tables are drawn anew, only at each epoch's end: within an epoch they have seen part of the
    rows, and would count as setbacks.
    """
    steps = TrainingOrder(manifest=manifest, batch_size=recipe.batch_size, seed=0).steps
    parts = 1 if recipe.reset_tables else min(recipe.evaluations_per_epoch, steps)
    within = [(i + 1) * steps // parts for i in range(parts)]
    return {epoch * steps + step for epoch in range(recipe.epochs) for step in within}
