"""A figure of a benchmark, as it goes into the JSON and the table."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from rich import box
from rich.table import Table

from afm_dist.evaluation.timing import Speedup


@dataclass(frozen=True, kw_only=True)
class Result:
    """One figure.

    Attributes:
        suite: Name of the suite.
        name: What was measured.
        value: Median over the runs, in ``unit``.
        unit: Of the value.
        reference: What it is compared with; None: nothing.
        ratio: Median over the runs of own / reference, both measured in the same round.
        ratio_min: Smallest of them.
        ratio_max: Largest of them.
        runs: Rounds that count.
    """

    suite: str
    name: str
    value: float
    unit: str
    reference: str | None = None
    ratio: float | None = None
    ratio_min: float | None = None
    ratio_max: float | None = None
    runs: int = 1


def rates(
    suite: str, rows: int, seconds: Mapping[str, Sequence[float]], reference: str, *, prefix: str = ""
) -> list[Result]:
    """Rows per second of everything that was timed in turn; ratios to ``reference``.

    Args:
        suite: Name of the suite.
        rows: Rows of one run.
        seconds: By name, as ``time_interleaved`` gives them.
        reference: The name all others are compared with.
        prefix: Put before the names.
    """
    results = []
    for name, own in seconds.items():
        result = Result(
            suite=suite,
            name=prefix + name,
            value=rows / statistics.median(own),
            unit="rows/s",
            runs=len(own),
        )
        if name != reference:
            result = compared(result, prefix + reference, Speedup.over(seconds[reference], own))
        results.append(result)
    return results


def compared(result: Result, reference: str, ratio: Speedup) -> Result:
    """The result with its ratio to a reference."""
    return replace(
        result,
        reference=reference,
        ratio=ratio.median,
        ratio_min=ratio.smallest,
        ratio_max=ratio.largest,
    )


def table(results: Sequence[Result]) -> Table:
    """The results for the terminal, 80 columns wide."""
    caption = ["ratio: to the nearest row above with ratio 1, of the same round; median and range"]
    caption += [f"of {result.name}: to {result.reference}" for result in _elsewhere(results)]
    shown = Table(
        title=f"benchmark {results[0].suite}",
        caption="\n".join(caption),
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
    )
    shown.add_column("name")
    shown.add_column("value", justify="right", no_wrap=True)
    shown.add_column("unit", no_wrap=True)
    shown.add_column("ratio", justify="right", no_wrap=True)
    shown.add_column("min–max", no_wrap=True)
    references = {result.reference for result in results}
    for result in results:
        value = f"{result.value:,.0f}" if result.value >= 100 else f"{result.value:.3g}"
        ratio, spread = "1" if result.name in references else "", ""
        if result.ratio is not None:
            ratio, spread = f"{result.ratio:.3g}", f"{result.ratio_min:.3g}–{result.ratio_max:.3g}"
        shown.add_row(result.name, value, result.unit, ratio, spread)
    return shown


def _elsewhere(results: Sequence[Result]) -> list[Result]:
    """Those whose reference is not the nearest row above that is one."""
    references = {result.reference for result in results}
    above, found = None, []
    for result in results:
        if result.ratio is not None and result.reference != above:
            found.append(result)
        if result.name in references:
            above = result.name
    return found
