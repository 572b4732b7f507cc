"""One field from rows to codes: what is stored of it, how its rows weigh, and what that does to the logit.

Shape legend: V ids of a field, S slots, K numbers of a row.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from afm_dist.errors import OptionError
from afm_dist.methods.quantization.codebooks import Codebooks, Fit, decoded
from afm_dist.methods.quantization.config import Quantization, Weighting
from afm_dist.methods.quantization.lloyd import BLOCK_ROWS
from afm_dist.methods.quantization.spec import Layout, Spec, Way
from afm_dist.statistics.moments import one_thread
from afm_dist.statistics.statistics import Statistics


@dataclass(frozen=True, kw_only=True)
class KnownRows:
    """The rows of a field, and what is known of them.

    Attributes:
        key: Of their statistics, for messages.
        rows: Shape (V, K), float32, on the CPU.
        counts: How often each id occurs, shape (V,), float64; ones where that is not known.
        sensitivity: G, shape (K, K), float64; None: not measured.
    """

    key: str
    rows: Tensor
    counts: Tensor
    sensitivity: Tensor | None

    @classmethod
    def of(cls, key: str, rows: Tensor, known: Statistics, *, sensitive: bool = True) -> KnownRows:
        """Put together what is known.

        Args:
            key: Of their statistics.
            rows: Shape (V, K).
            known: Of the model.
            sensitive: Whether the sensitivity is looked at; that of rows with a coordinate more is of no use.

        Raises:
            OptionError: a row that is not finite, or statistics of something else.
        """
        rows = rows.detach().float().cpu()
        for start in range(0, len(rows), BLOCK_ROWS):
            finite = rows[start : start + BLOCK_ROWS].isfinite().all(1)
            if not finite.all():
                row = start + int((~finite).nonzero()[0])
                raise OptionError(
                    f"{key}: the row of id {row} holds NaN or infinity, and cannot be quantised; look for a "
                    "diverged model, or set rows that never occur to 0"
                )
        counts = known.counts(key, len(rows))
        weights = torch.ones(len(rows), dtype=torch.float64) if counts is None else counts.double().cpu()
        if float(weights.sum()) <= 0:
            weights = torch.ones(len(rows), dtype=torch.float64)
        return cls(
            key=key,
            rows=rows,
            counts=weights,
            sensitivity=known.measured_sensitivity(key, rows.shape[1]) if sensitive else None,
        )

    def metric(self, config: Quantization) -> Tensor:
        """Give the metric of the fit.

        Raises:
            OptionError: the config asks for the logit's, and that was not measured.
        """
        if config.metric == "plain":
            return torch.eye(self.rows.shape[1], dtype=torch.float64)
        if self.sensitivity is None:
            raise OptionError(
                f"quantising {self.key} by what the logit depends on needs its sensitivity: measure it with "
                "output_sensitivity(model, batches, names, forward=…) and give it as compress_(model, plan, "
                "Statistics(moments, sensitivity)), or take metric='plain'"
            )
        return self.sensitivity

    def weights(self, weighting: Weighting) -> Tensor:
        """Say how much each row counts, shape (V,), float64: ids that never occurred as if they had once."""
        if weighting == "equal":
            return torch.ones_like(self.counts)
        counts = self.counts.clamp(min=1)
        return counts if weighting == "counts" else counts.log2().floor().clamp(min=1)


@dataclass(frozen=True, kw_only=True)
class Quantised:
    """What stands for some neighbouring rows of a field.

    Attributes:
        layout: What is stored.
        books: Codes and levels.
        error: What they add to the mean square of the change of the logit, predicted to first order; NaN
            where the sensitivity was not measured.
    """

    layout: Layout
    books: Codebooks
    error: float


def quantised(rows: KnownRows, spec: Spec, config: Quantization) -> list[Quantised]:
    """Quantise the rows of a field, range by range.

    Args:
        rows: Of the field.
        spec: How they are stored.
        config: Metric, weights and seed.

    Raises:
        OptionError: the sensitivity is missing, or more parts than coordinates.
    """
    found, start = [], 0
    ids, width = rows.rows.shape
    slots = spec.slots(ids)
    for way, layout in zip(_used(spec, slots), spec.layouts(ids, width), strict=True):
        stop = start + layout.slots
        # The last slot is that of all ids behind it.
        found.append(quantised_range(rows, start, stop if stop < slots else ids, layout.slots, way, config))
        start = stop
    return found


def _used(spec: Spec, slots: int) -> list[Way]:
    """List the ways of the ranges that are not empty."""
    borders = [0, *(min(end, slots) for end in spec.ends), slots]
    return [way for way, a, b in zip(spec.ways, borders, borders[1:], strict=False) if b > a]


@one_thread()
def quantised_range(
    rows: KnownRows, start: int, stop: int, slots: int, way: Way, config: Quantization
) -> Quantised:
    """Quantise the rows of some neighbouring ids in one way.

    Args:
        rows: Of the field.
        start: First id.
        stop: Behind the last id.
        slots: Rows that are stored; of the ids behind those their mean is one.
        way: How they are stored.
        config: Metric, weights and seed.

    Raises:
        OptionError: the sensitivity is missing, or more parts than coordinates.

    Notes:
        On one thread, so that the codes do not depend on how many cores a machine has.
    """
    layout = way.layout(slots, rows.rows.shape[1])
    own, weights = rows.rows[start:stop], rows.weights(config.weighting)[start:stop]
    if slots < len(own):
        shared = weights[slots - 1 :]
        mean = (shared @ own[slots - 1 :].double()) / shared.sum()
        own = torch.cat([own[: slots - 1], mean.float()[None]])
        weights = torch.cat([weights[: slots - 1], shared.sum()[None]])
    if layout.coded:
        books = Fit(own, weights, rows.metric(config), layout, config.seed).run()
        found = decoded(books, layout)
    else:
        found = own if layout.kind == "float32" else own.half().float()
        books = Codebooks(codes=torch.zeros(slots, 0, dtype=torch.int64), levels=found)
    return Quantised(layout=layout, books=books, error=change_of_logit(rows, found, start, stop))


def change_of_logit(rows: KnownRows, found: Tensor, start: int = 0, stop: int | None = None) -> float:
    """Predict what some ids add to the mean square of the change of the logit: Σ_v n_v/N (e − ê)ᵀG(e − ê).

    Args:
        rows: e, V of them.
        found: ê, of the ids from ``start`` on, of which the last stands for all behind it.
        start: First id.
        stop: Behind the last id; None: all.

    Returns:
        NaN where the sensitivity was not measured.
    """
    if rows.sensitivity is None:
        return torch.nan
    total, stop = 0.0, len(rows.rows) if stop is None else stop
    for first in range(start, stop, BLOCK_ROWS):
        last = min(first + BLOCK_ROWS, stop)
        place = torch.arange(first - start, last - start).clamp(max=len(found) - 1)
        left = (rows.rows[first:last] - found[place]).double()
        total += float(((left @ rows.sensitivity) * left).sum(1) @ rows.counts[first:last])
    return max(0.0, total / float(rows.counts.sum()))
