from __future__ import annotations

from afm_dist.training.history import EvaluationPoint, History


def test_patience_counts_from_the_best() -> None:
    history = History()
    improved = [
        history.add(EvaluationPoint(step, 0, 0.5, auc, 0.5), patience=2)
        for step, auc in enumerate([0.6, 0.5, 0.7, 0.7, 0.65], start=1)
    ]

    assert improved == [True, False, True, False, False]
    assert history.kept_step == 3
    assert history.stopped_early


def test_setbacks_are_evaluations_that_were_not_the_best_so_far() -> None:
    history = History()
    for step, auc in enumerate([0.70, 0.72, 0.71, 0.72, 0.73, 0.60]):
        history.add(EvaluationPoint(step, step, None, auc, 0.5), patience=9)

    assert history.setbacks == 3
