"""Names of points in AUC against bytes: those that could collide are moved apart together."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from afm_dist.report.plots.models import PlotPoint, _groups


def drawn(*points: PlotPoint) -> tuple[Axes, list[PlotPoint]]:
    ax = Figure().add_axes((0, 0, 1, 1))
    ax.set_xlim(0, 10)
    return ax, list(points)


def point(words: str, megabytes: float) -> PlotPoint:
    return PlotPoint(words, "afm", megabytes * 1e6, 0.8)


def test_names_that_reach_each_other_are_one_group() -> None:
    ax, points = drawn(point("a-rather-long-name", 2), point("another-long-name", 6), point("edge", 9))

    both, edge = _groups(ax, points)

    assert [offset > 0 for _, offset in both] == [True, False]
    assert [name.words for name, _ in edge] == ["edge"]


def test_names_that_do_not_are_moved_on_their_own() -> None:
    ax, points = drawn(point("a", 0.5), point("b", 8), point("edge", 9))

    assert [[name.words for name, _ in group] for group in _groups(ax, points)] == [["a"], ["b"], ["edge"]]
