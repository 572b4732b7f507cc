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
from afm_dist.methods.quantization.spec import Layout, Spec
from afm_dist.statistics.statistics import Statistics

FLOAT = Spec(kind="float32")
FLOAT_BYTES = 4


def effective(spec: Spec, ids: int, width: int) -> Spec:
    """Give how a field is stored: as it was, where the way that a plan asks for saves nothing.

    Args:
        spec: What the plan asks for.
        ids: V.
        width: K.
    """
    saves = spec.layout(spec.slots(ids), width).bytes < ids * width * FLOAT_BYTES
    return spec if saves else FLOAT


@dataclass(frozen=True, kw_only=True)
class Rows:
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
    def of(cls, key: str, rows: Tensor, known: Statistics) -> Rows:
        """Put together what is known.

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
            sensitivity=known.measured_sensitivity(key, rows.shape[1]),
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
    """What stands for the rows of a field.

    Attributes:
        layout: What is stored.
        books: Codes and levels.
        error: Predicted mean square of the change of the logit, to first order; NaN where the sensitivity was
            not measured.
    """

    layout: Layout
    books: Codebooks
    error: float


def quantised(rows: Rows, spec: Spec, config: Quantization) -> Quantised:
    """Quantise the rows of a field.

    Args:
        rows: Of the field.
        spec: How they are stored.
        config: Metric, weights and seed.

    Raises:
        OptionError: the sensitivity is missing, or more parts than coordinates.
    """
    V, K = rows.rows.shape
    slots = spec.slots(V)
    layout = spec.layout(slots, K)
    weights, own = rows.weights(config.weighting), rows.rows
    if slots < V:
        shared = weights[slots - 1 :]
        mean = (shared @ own[slots - 1 :].double()) / shared.sum()
        own = torch.cat([own[: slots - 1], mean.float()[None]])
        weights = torch.cat([weights[: slots - 1], shared.sum()[None]])
    if not layout.coded:
        levels = own if layout.kind == "float32" else own.half().float()
        books = Codebooks(codes=torch.zeros(slots, 0, dtype=torch.int64), levels=levels)
        found = levels
    else:
        books = Fit(own, weights, rows.metric(config), layout, config.seed).run()
        found = decoded(books, layout)
    return Quantised(layout=layout, books=books, error=change_of_logit(rows, found))


def change_of_logit(rows: Rows, found: Tensor) -> float:
    """Predict the mean square of the change of the logit: Σ_v n_v/N (e − ê)ᵀG(e − ê).

    Args:
        rows: e, V of them.
        found: ê, shape (S, K), of which the last stands for all ids behind it.

    Returns:
        NaN where the sensitivity was not measured.
    """
    if rows.sensitivity is None:
        return torch.nan
    total = 0.0
    for start in range(0, len(rows.rows), BLOCK_ROWS):
        stop = min(start + BLOCK_ROWS, len(rows.rows))
        place = torch.arange(start, stop).clamp(max=len(found) - 1)
        left = (rows.rows[start:stop] - found[place]).double()
        total += float(((left @ rows.sensitivity) * left).sum(1) @ rows.counts[start:stop])
    return max(0.0, total / float(rows.counts.sum()))
