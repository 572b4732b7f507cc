"""What of a curve leaves its figure, and what does not."""

from __future__ import annotations

from afm_dist.report.plots.curves import _limits


def candidate(*values: float) -> dict:
    curve = [{"step": step, "validation_auc": value} for step, value in enumerate(values)]
    return {"name": "afm", "round": "mlp", "kept_step": values.index(max(values)), "curve": curve}


def test_a_start_far_below_leaves_the_figure_but_a_dip_does_not() -> None:
    low, high = _limits([candidate(0.50, 0.7995, 0.70, 0.80)], 0.80, whole=False)

    assert 0.68 < low < 0.70
    assert high > 0.80


def test_a_whole_curve_has_its_start() -> None:
    low, _ = _limits([candidate(0.50, 0.79, 0.80)], None, whole=True)

    assert low < 0.50
