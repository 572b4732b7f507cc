from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from afm_dist.dataset.manifest import Manifest
from afm_dist.dataset.reader import read_batches
from afm_dist.errors import DataError, OptionError
from afm_dist.evaluation.score import Quality, score_shards
from afm_dist.models import build_model
from afm_dist.tables.fused import FusedEmbedding
from afm_dist.training.distillation import Teacher
from afm_dist.training.history import History
from afm_dist.training.loop import Trainer, check_reset, set_dropout
from afm_dist.training.optimizer import SplitOptimizer
from afm_dist.training.recipe import Recipe
from afm_dist.training.schedule import evaluation_steps, total_steps
from afm_dist.training.state import State
from afm_dist.training.step import Objective, train_step
from tests.small_dataset import FIELDS, write_dataset

RECIPE = Recipe(epochs=2, batch_size=64, learning_rate=0.02, evaluations_per_epoch=4, patience=100)
RUINOUS = RECIPE.using(learning_rate=20.0)


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return write_dataset(tmp_path_factory.mktemp("log"))


def deepfm(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return build_model("deepfm", FIELDS, {"embedding_dim": 4, "hidden": (16, 8), "dropout": 0.3})


def copy(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in state.items()}


@dataclass
class Watched:
    """A training and all it called."""

    model: nn.Module
    folder: Path
    history: History = field(default_factory=History)
    kept: dict[int, dict[str, Tensor]] = field(default_factory=dict)
    saved: list[int] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    digests: dict[int, str] = field(default_factory=dict)
    cut_after: int | None = None
    due: Callable[[], bool] = lambda: False

    def keep(self, model: nn.Module, step: int) -> None:
        self.kept[step] = copy(model.state_dict())

    def checkpoint_due(self) -> bool:
        return self.due()

    def progress(self, rows: int) -> None:
        self.rows.append(rows)
        if len(self.rows) == self.cut_after:
            raise PowerCutError

    def save(self, state: State) -> None:
        """Through the bytes of its files, as a worker does."""
        self.saved.append(state.step)
        self.digests[state.step] = state.write(str(self.at(state.step)), candidate="deepfm")

    def state(self, step: int) -> State:
        return State.read(str(self.at(step)), candidate="deepfm", step=step, digest=self.digests[step])

    def at(self, step: int) -> Path:
        return self.folder / str(step)


Run = Callable[..., Watched]


class PowerCutError(Exception):
    pass


@pytest.fixture(scope="module")
def run(log: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Train, and watch it; ``cut_after`` steps it ends in an error."""

    def run(
        recipe: Recipe = RECIPE,
        *,
        model: nn.Module | None = None,
        start: State | None = None,
        evaluate_first: bool = False,
        checkpoint_due: Callable[[], bool] = lambda: False,
        cut_after: int | None = None,
        teacher: nn.Module | None = None,
    ) -> Watched:
        folder = tmp_path_factory.mktemp("states")
        watched = Watched(model or deepfm(), folder, cut_after=cut_after, due=checkpoint_due)

        def go() -> None:
            trainer = Trainer(watched.model, log, recipe, teacher=teacher)
            watched.history = trainer.run(watched, start=start, evaluate_first=evaluate_first)

        if cut_after is None:
            go()
        else:
            with pytest.raises(PowerCutError):
                go()
        return watched

    return run


@pytest.fixture(scope="module")
def trained(run: Run) -> Watched:
    return run()


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def quality(model: nn.Module, log: Manifest) -> Quality:
    return Quality.of(score_shards(model, log, log.shards("validation")))


def test_training_learns_what_the_labels_follow_from(trained: Watched, log: Manifest) -> None:
    losses = [point.train_loss for point in trained.history.curve]

    assert losses[-1] < losses[0] - 0.05
    assert trained.history.best.validation_auc > quality(deepfm(), log).auc + 0.1


def test_the_curve_holds_what_scoring_the_weights_gives(trained: Watched, log: Manifest) -> None:
    final, last = quality(trained.model, log), trained.history.curve[-1]

    assert (last.validation_auc, last.validation_log_loss) == (final.auc, final.log_loss)


def test_every_row_of_every_epoch_is_counted(trained: Watched, log: Manifest) -> None:
    steps = total_steps(RECIPE, log)

    assert steps == 2 * -(-1000 // 64)
    assert len(trained.rows) == steps
    assert sum(trained.rows) == 2 * log.rows("train")
    assert trained.history.curve[-1].rows == 2 * log.rows("train")
    assert [point.rows for point in trained.history.curve] == [
        sum(trained.rows[: point.step]) for point in trained.history.curve
    ]


def test_evaluations_are_even_and_end_each_epoch(trained: Watched, log: Manifest) -> None:
    assert [point.step for point in trained.history.curve] == [4, 8, 12, 16, 20, 24, 28, 32]
    assert evaluation_steps(RECIPE.using(evaluations_per_epoch=1000), log) == set(range(1, 33))


def test_the_same_training_twice_ends_with_the_same_bits(trained: Watched, run: Run) -> None:
    assert same(run().model.state_dict(), trained.model.state_dict())


def test_another_seed_ends_elsewhere(trained: Watched, run: Run) -> None:
    assert not same(run(RECIPE.using(seed=1)).model.state_dict(), trained.model.state_dict())


@pytest.mark.parametrize("saved", [4, 12, 16, 28])
def test_a_training_interrupted_anywhere_ends_with_the_bits_of_one_that_was_not(
    trained: Watched, run: Run, saved: int
) -> None:
    interrupted = run(cut_after=saved + 2)
    assert interrupted.saved[-1] == saved

    resumed = run(model=deepfm(seed=9), start=interrupted.state(saved))

    assert same(resumed.model.state_dict(), trained.model.state_dict())
    assert resumed.history == trained.history
    assert len(resumed.rows) == len(trained.rows) - saved


@pytest.mark.parametrize("saved", [1, 7, 17])
def test_so_does_one_that_goes_on_from_between_two_evaluations(
    trained: Watched, run: Run, saved: int
) -> None:
    interrupted = run(cut_after=saved + 1, checkpoint_due=lambda: True)

    resumed = run(model=deepfm(seed=9), start=interrupted.state(saved))

    assert same(resumed.model.state_dict(), trained.model.state_dict())
    assert resumed.history == trained.history
    assert resumed.kept.keys() == {step for step in trained.kept if step > saved}


def test_when_checkpoints_are_taken_changes_nothing(trained: Watched, run: Run) -> None:
    answers = iter([True, False, True, True] + 28 * [False])

    often = run(checkpoint_due=lambda: next(answers))

    assert often.saved == [1, 3, *trained.saved]
    assert same(often.model.state_dict(), trained.model.state_dict())
    assert often.history == trained.history
    assert (often.at(32) / "state.json").read_bytes() == (trained.at(32) / "state.json").read_bytes()


def test_a_state_that_was_altered_or_is_of_another_training_is_refused_by_name(
    trained: Watched, run: Run, tmp_path: Path
) -> None:
    other, digest = run(RECIPE.using(seed=7)), trained.digests[32]
    copied = tmp_path / "state"
    for name in ("state.json", "state.safetensors"):
        shutil.copytree(trained.at(32), copied, dirs_exist_ok=True)
        content = bytearray((copied / name).read_bytes())
        for at in range(0, len(content), max(1, len(content) // 50)):
            content[at] ^= 1
            (copied / name).write_bytes(content)
            content[at] ^= 1

            with pytest.raises(DataError, match=r"/state(\.json|\.safetensors|:)"):
                State.read(str(copied), candidate="deepfm", step=32, digest=digest)

    with pytest.raises(DataError, match="another run"):
        State.read(str(other.at(32)), candidate="deepfm", step=32, digest=digest)


def test_resuming_at_the_end_only_says_that_it_is_finished(trained: Watched, run: Run) -> None:
    resumed = run(start=trained.state(32))

    assert resumed.rows == []
    assert resumed.history.finished
    assert same(resumed.model.state_dict(), trained.model.state_dict())


def test_an_optimizer_of_another_step_is_refused(trained: Watched, run: Run) -> None:
    mixed = replace(trained.state(8), optimizer=trained.state(4).optimizer)

    with pytest.raises(RuntimeError, match="the optimizer is 4 steps on, the training 8"):
        run(start=mixed)


def test_what_is_kept_is_the_best_that_was_seen(trained: Watched, log: Manifest) -> None:
    best = deepfm()
    best.load_state_dict(trained.kept[trained.history.kept_step])

    assert quality(best, log).auc == max(point.validation_auc for point in trained.history.curve)
    assert trained.history.best.validation_auc == quality(best, log).auc


def test_fine_tuning_that_hurts_keeps_the_state_before_it(trained: Watched, run: Run) -> None:
    model = deepfm()
    model.load_state_dict(trained.kept[trained.history.kept_step])
    before = copy(model.state_dict())

    tuned = run(RUINOUS, model=model, evaluate_first=True)

    assert tuned.history.kept_step == 0
    assert tuned.history.curve[0].step == 0
    assert len(tuned.kept) == 1
    assert same(tuned.kept[0], before)
    assert not same(tuned.model.state_dict(), before)
    assert all(p.validation_auc < tuned.history.best.validation_auc for p in tuned.history.curve[1:])


def test_the_state_before_the_first_step_competes_only_when_fine_tuning(run: Run) -> None:
    assert run(RECIPE.using(epochs=1)).history.curve[0].step > 0
    assert run(RECIPE.using(epochs=1), evaluate_first=True).history.curve[0].step == 0


@pytest.mark.parametrize("patience", [1, 3])
def test_patience_ends_a_training_that_does_not_improve(trained: Watched, patience: int, run: Run) -> None:
    model = deepfm()
    model.load_state_dict(trained.kept[trained.history.kept_step])

    tuned = run(RUINOUS.using(patience=patience), model=model, evaluate_first=True)

    assert tuned.history.stopped_early
    assert tuned.history.finished
    assert len(tuned.history.curve) == 1 + patience
    assert len(tuned.rows) == 4 * patience


@pytest.mark.parametrize(("dropout", "expected"), [(None, 0.3), (0.0, 0.0), (0.6, 0.6)])
def test_the_recipe_overrides_the_dropout_of_the_model(
    dropout: float | None, expected: float, run: Run
) -> None:
    watched = run(RECIPE.using(epochs=1, dropout=dropout))

    assert {m.p for m in watched.model.modules() if isinstance(m, nn.Dropout)} == {expected}


def test_dropout_is_on_in_training_and_off_in_scoring(run: Run) -> None:
    modes: dict[str, set[bool]] = {"step": set(), "score": set()}
    model = deepfm()
    model.mlp[2].register_forward_hook(
        lambda module, *_: modes["step" if torch.is_grad_enabled() else "score"].add(module.training)
    )

    run(RECIPE.using(epochs=1), model=model)

    assert modes == {"step": {True}, "score": {False}}


def test_a_loss_that_is_not_a_number_ends_the_training_with_what_to_change(run: Run) -> None:
    model = deepfm()
    with torch.no_grad():
        model.mlp[0].weight[0, 0] = float("nan")

    with pytest.raises(
        DataError, match=r"training loss became nan before step 4; lower the learning rate \(0\.02\)"
    ):
        run(model=model)


def test_a_step_descends_the_mean_loss_over_the_global_batch(log: Manifest) -> None:
    model, batch = deepfm(), next(read_batches(log, log.shards("train"), 50))
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    loss = nn.functional.binary_cross_entropy_with_logits(model(batch.ids, batch.numeric), batch.labels)
    expected = torch.autograd.grad(loss, list(model.parameters()))

    returned = train_step(model, SplitOptimizer(model, 0.01, 0.0), batch, global_rows=100)

    assert float(returned.loss) == pytest.approx(loss.item() / 2, rel=1e-6)
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad.to_dense(), gradient.to_dense() / 2, rtol=1e-5, atol=1e-8)


def test_learning_rates_fall_after_each_setback(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    scales: list[float] = []
    scale = SplitOptimizer.scale_learning_rates
    monkeypatch.setattr(
        SplitOptimizer, "scale_learning_rates", lambda self, by: scales.append(by) or scale(self, by)
    )

    watched = run(RUINOUS.using(plateau_factor=0.5))

    setbacks, best, expected = 0, -1.0, []
    for point, before in zip(watched.history.curve, [0, *watched.saved], strict=False):
        expected += [0.5**setbacks] * (point.step - before)
        setbacks += point.validation_auc <= best
        best = max(best, point.validation_auc)
    assert setbacks > 0
    assert scales == expected


def test_tables_are_drawn_anew_before_each_epoch_but_the_first(run: Run, trained: Watched) -> None:
    watched = run(RECIPE.using(reset_tables=True))

    # Scored, and so saved, at the ends of epochs only.
    assert watched.saved == [16, 32]
    assert same(watched.state(16).model, trained.state(16).model)
    steps = watched.state(32).optimizer
    assert [int(steps[f"{name}.weight/step"]) for name in ("embedding", "mlp.0")] == [16, 32]


@pytest.mark.parametrize(
    "changes",
    [
        {"reset_tables": True},
        {"table_optimizer": "adagrad", "table_learning_rate": 0.1},
        {"plateau_factor": 0.5, "learning_rate": 0.2, "clip_norm": 1.0},
        {"average": True},
        {"trained": "dense", "average": True},
        {"distill_weight": 0.5, "distill_temperature": 2.0},
    ],
    ids=lambda changes: next(iter(changes)),
)
@pytest.mark.parametrize("saved", [1, 16, 19])
def test_every_way_of_training_goes_on_to_the_same_bits(
    run: Run, changes: dict[str, object], saved: int
) -> None:
    recipe, teacher = RECIPE.using(**changes), deepfm(seed=5)
    whole = run(recipe, teacher=teacher)
    cut = run(recipe, teacher=teacher, cut_after=saved + 1, checkpoint_due=lambda: True)

    resumed = run(recipe, model=deepfm(seed=9), teacher=teacher, start=cut.state(saved))

    assert same(resumed.model.state_dict(), whole.model.state_dict())
    assert resumed.history == whole.history
    assert all(same(resumed.kept[step], whole.kept[step]) for step in resumed.kept)


def test_what_is_scored_and_kept_is_the_average_of_the_states_that_were_scored(
    run: Run, trained: Watched, log: Manifest
) -> None:
    averaged = run(RECIPE.using(average=True), evaluate_first=True)

    # It goes its way as if there were no average.
    assert same(averaged.model.state_dict(), trained.model.state_dict())
    assert len(averaged.kept) > 1
    for point in averaged.history.curve[1:]:
        states = [trained.state(step).model for step in trained.saved if step <= point.step]
        by_hand = {name: torch.stack([state[name] for state in states]).mean(0) for name in states[0]}
        model = deepfm()
        model.load_state_dict(by_hand)
        assert point.validation_auc == pytest.approx(quality(model, log).auc, abs=1e-4)
        for name, kept in averaged.kept.get(point.step, {}).items():
            torch.testing.assert_close(kept, by_hand[name], rtol=1e-5, atol=1e-6)
    scored = [point.validation_auc for point in averaged.history.curve[2:]]
    assert scored != pytest.approx([p.validation_auc for p in trained.history.curve[1:]], abs=1e-3)


@pytest.mark.parametrize("trained_weights", ["dense", "factors"])
def test_frozen_tables_keep_their_bits_while_the_others_move(run: Run, trained_weights: str) -> None:
    before = deepfm().state_dict()

    after = run(RECIPE.using(trained=trained_weights), model=deepfm()).model.state_dict()

    still = {name for name in before if torch.equal(before[name], after[name])}
    assert still == {"embedding.weight", "linear.weight"}


def test_distilling_with_no_weight_is_not_distilling(run: Run, trained: Watched) -> None:
    never_called = nn.Identity()

    taught = run(RECIPE.using(distill_weight=0.0, distill_temperature=3.0), teacher=never_called)

    assert same(taught.model.state_dict(), trained.model.state_dict())


def test_without_a_teacher_nothing_is_distilled_in_silence(run: Run) -> None:
    with pytest.raises(ValueError, match="needs a teacher"):
        run(RECIPE.using(distill_weight=0.5))


def test_with_little_weight_a_teacher_moves_little(run: Run, log: Manifest) -> None:
    def distance(weight: float) -> float:
        recipe = RECIPE.using(epochs=1, learning_rate=1e-4, distill_weight=weight)
        taught = run(recipe, teacher=deepfm(seed=5)).model.state_dict()
        alone = run(RECIPE.using(epochs=1, learning_rate=1e-4)).model.state_dict()
        return sum(float((taught[name] - alone[name]).abs().sum()) for name in alone)

    assert 0 < distance(1e-4) < 0.1 * distance(0.5)


def test_a_teacher_teaches_without_dropout_and_does_not_change(run: Run) -> None:
    teacher = deepfm(seed=5).train()
    before = copy(teacher.state_dict())

    run(RECIPE.using(epochs=1, distill_weight=0.5), teacher=teacher)

    assert not teacher.training
    assert same(teacher.state_dict(), before)
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_the_training_loss_of_a_taught_model_is_that_of_the_labels(log: Manifest) -> None:
    model, batch = deepfm().eval(), next(read_batches(log, log.shards("train"), 50))
    set_dropout(model, 0.0)
    loss = nn.functional.binary_cross_entropy_with_logits(model(batch.ids, batch.numeric), batch.labels)
    teacher = Teacher(model=deepfm(seed=5).eval(), weight=0.5, temperature=2.0)
    objective = Objective(lambda batch: model(batch.ids.long(), batch.numeric), teacher)

    returned = train_step(model, SplitOptimizer(model, 0.01, 0.0), batch, global_rows=50, objective=objective)

    assert float(returned.loss) == pytest.approx(loss.item(), rel=1e-6)


def test_a_training_goes_on_from_before_its_first_step(run: Run) -> None:
    whole = run(evaluate_first=True)
    cut = run(evaluate_first=True, cut_after=1)
    assert cut.saved == [0]

    resumed = run(evaluate_first=True, model=deepfm(seed=9), start=cut.state(0))

    assert same(resumed.model.state_dict(), whole.model.state_dict())
    assert resumed.history == whole.history


def test_tables_of_a_compressed_model_are_not_drawn_anew() -> None:
    model = nn.ModuleDict({"table": FusedEmbedding(["x"], [5], 4, code_dim=2)})

    with pytest.raises(OptionError, match=r"reset_tables: table\.weight cannot be drawn anew"):
        check_reset(model)
