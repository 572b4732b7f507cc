"""Train a CTR model on a dataset directory.

python jobs/train.py --data DATA --model deepfm --output RUN
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from tyro.conf import OmitArgPrefixes

from afm_dist.errors import OptionError
from afm_dist.runs.run import Resume, Run, check_output
from afm_dist.runtime import console
from afm_dist.runtime.resources import AUTOMATIC, ResourceOptions
from afm_dist.training.recipe import (
    CHECKPOINT_MINUTES,
    Precision,
    Recipe,
    TableOptimizer,
    check_checkpoint_minutes,
    preset,
)


@dataclass(kw_only=True)
class Train:
    """Train a CTR model; the result is in OUTPUT/checkpoint."""

    data: str
    """Dataset directory, made by jobs/prepare.py."""
    output: str
    """Run directory; created if it is not there."""
    model: str = "deepfm"
    """Architecture: autoint, dcn, dcnv2, deepfm, dlrm, fibinet, gdcn or nfm."""
    preset: str = "default"
    """Recipe the options below start from: default, afm-criteo, afm-avazu, criteo-x4, avazu-x4 or demo
    (the same as default)."""
    embedding_dim: int | None = None
    """Embedding dimension."""
    hidden: tuple[int, ...] | None = None
    """Widths of the MLP's hidden layers."""
    dropout: float | None = None
    """Dropout of the MLP."""
    epochs: int | None = None
    """Passes over the training split."""
    batch_size: int | None = None
    """Rows of a batch, over all workers."""
    learning_rate: float | None = None
    """Adam's learning rate."""
    l2: float | None = None
    """Weight of the squared norm of the weights in the loss; of a table, of the rows of a batch. The
    tables have one of their own in the preset criteo-x4."""
    table_optimizer: TableOptimizer | None = None
    """How tables are updated: lazy Adam, or row-wise Adagrad, whose state is one number a row."""
    table_learning_rate: float | None = None
    """Of the tables, e.g. 0.02 with adagrad; by default that of the other weights."""
    table_l2: float | None = None
    """As --l2, of the tables alone."""
    plateau_factor: float | None = None
    """Multiply the learning rates by this after each evaluation that is not the best so far, e.g. 0.1."""
    reset_tables: bool = False
    """Draw the tables anew before each epoch but the first (MEDA), against overfitting of rare ids; the
    validation split is then scored at the ends of epochs only."""
    evaluations_per_epoch: int | None = None
    """How often the validation split is scored."""
    patience: int | None = None
    """Stop after so many evaluations without a better validation AUC."""
    clip_norm: float | None = None
    """Largest norm of the gradient over all weights; by default it is not limited."""
    seed: int = 0
    """Of initialisation, row order and dropout."""
    precision: Precision | None = None
    """Of the products in the dense part; bfloat16 where the processor or GPU has it."""
    compile: bool = False
    """Compile the model with torch.compile: about 20 s, then faster steps. Needs a C++ compiler."""
    workers: int = 1
    """Data-parallel Ray Train workers; the CPUs are shared out among them."""
    checkpoint_minutes: float = CHECKPOINT_MINUTES
    """A checkpoint to go on from is taken after each evaluation, and when the last one is so old; when
    they are taken does not change the result."""
    resume: Resume = "auto"
    """auto: skip what is up to date; never: do everything again."""
    resources: OmitArgPrefixes[ResourceOptions] = AUTOMATIC
    dry_run: bool = False
    """Print what would be done, with what each node must have, and start nothing."""


def main(config: Train) -> None:
    """Run the job."""
    console.info(f"afm-dist train: {config.model} on {config.data}")
    # torch and Ray take seconds to import: after the first line.
    from afm_dist.dataset.labels import Labels, check_labels, warn_of_undefined
    from afm_dist.pipelines.context import Context
    from afm_dist.pipelines.step import Given, Pipeline
    from afm_dist.planning.capacity import admit
    from afm_dist.planning.estimate import Costs, new_model
    from afm_dist.planning.show import show
    from afm_dist.runtime.cluster import check_paths, check_workers
    from afm_dist.runtime.machine import work_in_driver
    from afm_dist.stages.evaluation import EvaluateModels, Subject, print_evaluation
    from afm_dist.stages.shipping import reporting, ship
    from afm_dist.stages.training import BASELINE, Models, TrainBaseline, training_dataset
    from afm_dist.training.fit import WorkerGroup

    check_paths(data=config.data, output=config.output)
    check_workers(config.workers)
    check_checkpoint_minutes(config.checkpoint_minutes)
    check_hidden(config.hidden)
    check_output(config.output, job="train")
    chosen = preset(config.preset)
    recipe = chosen.train.using_options(
        {name: f"--{name.replace('_', '-')}" for name in vars(config)},
        epochs=config.epochs,
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        l2=config.l2,
        table_optimizer=config.table_optimizer,
        table_learning_rate=config.table_learning_rate,
        table_l2=config.table_l2,
        plateau_factor=config.plateau_factor,
        reset_tables=config.reset_tables or None,
        evaluations_per_epoch=config.evaluations_per_epoch,
        patience=config.patience,
        precision=config.precision,
        compile=config.compile or None,
        clip_norm=config.clip_norm,
        seed=config.seed,
    )
    warn_of_ignored(config, recipe)
    hyper_parameters = chosen.shape(
        embedding_dim=config.embedding_dim, hidden=config.hidden, dropout=config.dropout
    )
    dataset = training_dataset(config.data)
    check_labels(dataset.manifest)
    warn_of_undefined(Labels.of(dataset.manifest, "test"))
    described = new_model(config.model, hyper_parameters, dataset.manifest)

    training = TrainBaseline(architecture=config.model, hyper_parameters=hyper_parameters, recipe=recipe)
    evaluation = EvaluateModels(
        subjects=lambda: [Subject(name=BASELINE, stage="trained", checkpoint=shipped.path)],
        inputs=[training],
        count=1,
    )
    costs = Costs.of(described, dataset.manifest, options=config.resources, workers=config.workers)
    plan = costs.plan(Pipeline([training, evaluation]).estimates(costs), output=config.output)
    if config.dry_run:
        show(plan, check=config.resources.capacity_check)
        return
    admit(plan.left(), check=config.resources.capacity_check)
    work_in_driver()

    context = Context(
        run=Run(config.output, job="train", config=asdict(config), resume=config.resume),
        dataset=Given(dataset),
        group=WorkerGroup(
            workers=config.workers,
            options=config.resources,
            checkpoint_minutes=config.checkpoint_minutes,
        ),
    )
    shipped = ship(context, training.run(context), BASELINE)
    evaluation.inputs = [Given(Models(stage=shipped, checkpoints={}, histories={}))]
    with reporting(context.run, shipped.path):
        print_evaluation(evaluation.run(context))
    console.info(f"checkpoint: {shipped.path}")


def check_hidden(hidden: tuple[int, ...] | None) -> None:
    """Refuse an MLP without a layer.

    Raises:
        OptionError: the option has no value.
    """
    if hidden is not None and not hidden:
        raise OptionError("--hidden: names no width; give one or more, e.g. 400 400 400, or leave it out")


def warn_of_ignored(config: Train, recipe: Recipe) -> None:
    """Warn of options without effect."""
    evaluations = recipe.most_evaluations
    for option, ignored, because in (
        ("--reset-tables", recipe.reset_tables and recipe.epochs == 1, "there is one epoch; give --epochs"),
        (
            "--evaluations-per-epoch",
            recipe.reset_tables and config.evaluations_per_epoch is not None,
            "--reset-tables is given",
        ),
        (
            f"--patience {config.patience}",
            config.patience is not None and config.patience >= evaluations - 1,
            f"the evaluations are {evaluations}, and the first is the best so far",
        ),
        # As above, and after the last one nothing is learned.
        (
            "--plateau-factor",
            config.plateau_factor is not None and evaluations < 3,
            f"the evaluations are {evaluations}, and it takes three",
        ),
    ):
        if ignored:
            console.warn(f"{option} is ignored: {because}")


if __name__ == "__main__":
    console.run_job(Train, main)
