"""A recipe in words, for the report."""

from __future__ import annotations

from afm_dist.training.recipe import Recipe, Trained

_TRAINED: dict[Trained, str] = {
    "all": "all weights are trained",
    "dense": "the tables are frozen (the projections of compressed ones are not, so a compressed model can "
    "still move its embeddings, the control cannot)",
    "factors": "only what compression made is trained (low-rank factors, projections and the layers they "
    "were folded into; of the uncompressed control all dense weights)",
}


def describe(recipe: Recipe) -> str:
    """Describe how a round of fine-tuning is done, without a full stop at the end."""
    passes = "one pass" if recipe.epochs == 1 else f"{recipe.epochs} passes"
    averaged = (
        "the average of the weights at all evaluations so far is what is scored and kept"
        if recipe.average
        else "the weights are not averaged"
    )
    temperature = recipe.distill_temperature
    distilled = (
        f"{recipe.distill_weight:g} of the loss is against the predictions of the uncompressed model as it "
        f"entered the round, at temperature {temperature:g}"
        if recipe.distill_weight
        else "nothing is distilled"
    )
    evaluations = recipe.most_evaluations
    ends = (
        f"; it ends after {recipe.patience} evaluations without a better validation AUC"
        if recipe.patience < evaluations
        else ""
    )
    return (
        f"{passes} over the training split in batches of {recipe.batch_size:,} at learning rate "
        f"{recipe.learning_rate:g}; {_TRAINED[recipe.trained]}; {averaged}; {distilled}{ends}"
    )
