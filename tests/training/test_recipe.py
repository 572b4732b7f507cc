from __future__ import annotations

import math
from typing import Any

import pytest

from afm_dist.errors import OptionError
from afm_dist.training.recipe import PRESETS, Recipe, preset
from data_prep import presets


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 0),
        ("batch_size", 0),
        ("evaluations_per_epoch", 0),
        ("patience", 0),
        ("learning_rate", 0.0),
        ("l2", -1e-5),
        ("dropout", 1.0),
        ("dropout", -0.1),
        ("learning_rate", math.nan),
        ("learning_rate", math.inf),
        ("l2", math.nan),
        ("seed", -1),
        ("seed", 2**63),
        ("table_learning_rate", 0.0),
        ("table_l2", -1e-5),
        ("plateau_factor", 0.0),
        ("plateau_factor", 1.5),
        ("clip_norm", 0.0),
        ("trained", "tables"),
        ("distill_weight", 1.0),
        ("distill_weight", -0.1),
        ("distill_weight", math.nan),
        ("distill_temperature", 0.0),
        ("distill_temperature", math.inf),
    ],
)
def test_a_recipe_that_cannot_be_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(OptionError, match=f"^{name} {value}: "):
        Recipe(**{name: value})


@pytest.mark.parametrize("changes", [{"trained": "dense"}, {"trained": "factors"}, {"average": True}])
def test_tables_drawn_anew_are_trained_and_not_averaged(changes: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=f"reset_tables with {next(iter(changes))}"):
        Recipe(reset_tables=True, **changes)


def test_changing_a_recipe_leaves_out_what_is_not_given() -> None:
    assert Recipe(epochs=2, patience=9).using(epochs=None, batch_size=7) == Recipe(
        epochs=2, batch_size=7, patience=9
    )


def test_the_published_presets_are_those_of_the_paper() -> None:
    criteo, avazu = PRESETS["afm-criteo"], PRESETS["afm-avazu"]

    assert [p.train.learning_rate for p in (criteo, avazu)] == [1e-4, 1e-4]
    assert [p.train.batch_size for p in (criteo, avazu)] == [1000, 500]
    assert [p.finetune_mlp.batch_size for p in (criteo, avazu)] == [20_000, 10_000]
    assert [p.finetune_embedding.batch_size for p in (criteo, avazu)] == [10_000, 5_000]
    assert [p.finetune_embedding.dropout for p in (criteo, avazu)] == [0.0, 0.0]
    assert [p.finetune_mlp.learning_rate for p in (criteo, avazu)] == [1e-3, 1e-3]
    assert [(p.mlp_rank, p.code_dim) for p in (criteo, avazu)] == [(64, 2), (320, 8)]
    assert {p.train.l2 for p in (criteo, avazu)} == {1e-5}


def test_the_leaderboards_presets_are_those_of_its_logs() -> None:
    criteo, avazu = PRESETS["criteo-x4"], PRESETS["avazu-x4"]

    assert [p.hyper_parameters["hidden"] for p in (criteo, avazu)] == [(1000,) * 5, (2000,) * 4]
    assert [p.hyper_parameters["dropout"] for p in (criteo, avazu)] == [0.2, 0.0]
    assert {p.hyper_parameters["embedding_dim"] for p in (criteo, avazu)} == {16}
    # λ/2·‖E‖² with λ = 1e-5 and 0, of tables alone.
    assert [(p.train.l2, p.train.table_l2) for p in (criteo, avazu)] == [(0.0, 5e-6), (0.0, None)]
    for p in (criteo, avazu):
        assert (p.train.batch_size, p.train.learning_rate) == (10_000, 1e-3)
        assert (p.train.epochs, p.train.patience, p.train.plateau_factor) == (100, 2, 0.1)
        assert p.train.clip_norm == 10


@pytest.mark.parametrize("name", sorted({*presets.names()} - {*PRESETS}))
def test_a_preset_that_only_prepares_data_is_told_from_an_unknown_one(name: str) -> None:
    message = f"--preset {name}: a preset of jobs/prepare.py only; choose from default, demo, afm-criteo"
    with pytest.raises(OptionError, match=message):
        preset(name)


def test_an_unknown_preset_is_refused_with_the_known_ones() -> None:
    with pytest.raises(OptionError, match="--preset criteo: unknown; choose from default, demo, afm-criteo"):
        preset("criteo")
