"""Weighted k-means of rows in blocks: first codewords, nearest codewords, sums by codeword.

Blocks are a function of the rows alone, and their sums are added up in order, so the result does not depend
on who computes which. Shape legend: n rows, d coordinates, k codewords.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Rows that are looked at together, and products of rows and codewords that stay in a processor's cache.
BLOCK_ROWS = 1 << 13
BLOCK_PRODUCTS = 1 << 18
# From so many rows the first codewords are drawn: more for more codewords.
SEED_ROWS = 1 << 14
SEED_ROWS_EACH = 8
# Up to so many codewords the best of a few draws is taken each time.
GREEDY_CODEWORDS = 256
GREEDY_DRAWS = 4
# Of numbers so many levels are the best there are for so many bins, and more follow from those.
LINE_CODEWORDS = 64
LINE_BINS = 1024
# How many codewords without rows find new ones at a time.
WORST = 64


def nearest(rows: Tensor, codewords: Tensor) -> Tensor:
    """Find the nearest codeword of each row.

    Args:
        rows: Shape (n, d), float32.
        codewords: Shape (k, d), float32.

    Returns:
        Shape (n,), int64; of codewords at the same distance the first.
    """
    if len(codewords) == 1:
        return torch.zeros(len(rows), dtype=torch.int64)
    if rows.shape[1] == 1:
        return _nearest_number(rows[:, 0], codewords[:, 0])
    # ‖z − c‖² = ‖z‖² − 2(zᵀc − ‖c‖²/2)
    halves = codewords.square().sum(1) / -2
    transposed = codewords.T.contiguous()
    found = torch.empty(len(rows), dtype=torch.int64)
    size = max(1, BLOCK_PRODUCTS // len(codewords))
    for block, own in zip(rows.split(size), found.split(size), strict=True):
        # NumPy's is ten times as fast as torch's.
        own.copy_(torch.from_numpy(torch.addmm(halves, block, transposed).numpy().argmax(1)))
    return found


def _nearest_number(rows: Tensor, codewords: Tensor) -> Tensor:
    """Find the same of numbers, (n,) and (k,), by the borders between neighbours."""
    values, order = codewords.sort(stable=True)
    borders = values[:-1] + (values[1:] - values[:-1]) / 2
    return order[torch.bucketize(rows, borders)]


class Sums:
    """Sums over rows by codeword, of blocks that are added in order.

    Attributes:
        weight: Of the rows, shape (k,), float64.
        total: Weighted rows, shape (k, d), float64.
        error: Of all rows, weighted squared distances.
        worst: Weighted squared distances of the rows that have the largest, descending, shape (≤ WORST,).
        worst_rows: Those rows, shape (≤ WORST, d).
    """

    def __init__(self, codewords: int, width: int) -> None:
        self.weight = torch.zeros(codewords, dtype=torch.float64)
        self.total = torch.zeros(codewords, width, dtype=torch.float64)
        self.error = 0.0
        self.worst = torch.zeros(0, dtype=torch.float64)
        self.worst_rows = torch.zeros(0, width)

    def add(self, codes: Tensor, weights: Tensor, rows: Tensor, errors: Tensor) -> None:
        """Add a block.

        Args:
            codes: Shape (n,), int64.
            weights: Shape (n,), float64.
            rows: Shape (n, d).
            errors: Squared distances, shape (n,).
        """
        self.weight.index_add_(0, codes, weights)
        self.total.index_add_(0, codes, rows.double() * weights[:, None])
        weighted = errors.double() * weights
        self.error += float(weighted.sum())
        self._keep_worst(weighted, rows)

    def merge(self, other: Sums) -> None:
        """Add the sums of later rows."""
        self.weight += other.weight
        self.total += other.total
        self.error += other.error
        self._keep_worst(other.worst, other.worst_rows)

    def _keep_worst(self, errors: Tensor, rows: Tensor) -> None:
        most = errors.topk(min(WORST, len(errors))).indices
        errors, rows = torch.cat([self.worst, errors[most]]), torch.cat([self.worst_rows, rows[most]])
        order = errors.argsort(descending=True, stable=True)[:WORST]
        self.worst, self.worst_rows = errors[order], rows[order]

    def means(self) -> Tensor:
        """Give the mean of each codeword's rows, shape (k, d), float64; zeros where there are none."""
        return self.total / self.weight.clamp(min=1e-300)[:, None]


def sample(rows: Tensor, weights: Tensor, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw rows that stand for all, as far as k-means is concerned.

    A row is drawn as often as it weighs, and as it weighs times its squared distance from the mean, half of
    each, and weighs as much less.

    Args:
        rows: Shape (n, d), float32.
        weights: Shape (n,), float64, positive.
        size: How many.
        generator: Seeded.

    Returns:
        Which, shape (size,), int64, and their weights, shape (size,), float64; all of no more rows than that.

    Source:
        Bachem, Lucic & Krause, "Scalable k-means clustering via lightweight coresets" (KDD 2018).
    """
    if len(rows) <= size:
        return torch.arange(len(rows)), weights
    whole, mean = weights.sum(), torch.zeros(rows.shape[1], dtype=torch.float64)
    for own, weight in zip(rows.split(BLOCK_ROWS), weights.split(BLOCK_ROWS), strict=True):
        mean += weight @ own.double()
    spread = (rows - (mean / whole).float()).square().sum(1).double() * weights
    share = weights / whole + spread / spread.sum().clamp(min=1e-300)
    drawn = _draw(share, size, generator)
    return drawn, weights[drawn] / share[drawn] / size * share.sum()


def first_codewords(rows: Tensor, weights: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """Draw the first codewords: k-means++ on a sample; of numbers, the best levels of a histogram.

    Args:
        rows: Shape (n, d), float32, n ≥ k.
        weights: Shape (n,), float64, positive.
        k: How many.
        generator: Seeded.

    Returns:
        Shape (k, d), float32.

    Source:
        Arthur & Vassilvitskii, "k-means++" (SODA 2007).
    """
    if rows.shape[1] == 1:
        return _numbers(rows[:, 0].double(), weights, k)[:, None]
    drawn, weights = sample(rows, weights, max(SEED_ROWS, SEED_ROWS_EACH * k), generator)
    rows = rows[drawn]
    draws = GREEDY_DRAWS if k <= GREEDY_CODEWORDS else 1
    chosen = rows.new_empty(k, rows.shape[1])
    distances = torch.full((len(rows),), torch.inf)
    squares, each = rows.square().sum(1), weights.float()
    done, at_once = 0, 1
    while done < k:
        chances = weights * distances.double() if done else weights
        if float(chances.sum()) <= 0:
            # Fewer different rows than codewords; the others stay without rows.
            chosen[done:] = chosen[0]
            break
        picked = rows[_draw(chances, max(draws, at_once) if done else 1, generator)]
        apart = torch.addmm(squares, picked, rows.T, alpha=-2).add_(picked.square().sum(1)[:, None])
        apart = apart.clamp_(min=0).minimum(distances)
        if at_once == 1:
            best = int((apart @ each).argmin())
            chosen[done], distances = picked[best], apart[best]
        else:
            chosen[done : done + at_once], distances = picked, apart.amin(0)
        done += at_once
        # Of many codewords several are drawn together.
        at_once = min(max(1, k // GREEDY_CODEWORDS), k - done)
    return chosen


def _draw(chances: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Draw rows with replacement, by chances that need not add up to 1."""
    totals = chances.cumsum(0)
    points = torch.rand(count, dtype=torch.float64, generator=generator) * totals[-1]
    return torch.searchsorted(totals, points, right=True).clamp(max=len(chances) - 1)


def _numbers(values: Tensor, weights: Tensor, k: int) -> Tensor:
    """Give k levels for numbers (n,), float64: the best of their bins, or as dense as the best would be."""
    order = values.argsort(stable=True)
    values, weights = values[order], weights[order]
    bins = min(LINE_BINS, len(values))
    # Neighbours in bins of alike cube roots of weight: levels are as dense as that, not as the rows.
    place = _cells(weights, values, bins)
    bin_weights = torch.zeros(bins, dtype=torch.float64).index_add_(0, place, weights)
    bin_totals = torch.zeros(bins, dtype=torch.float64).index_add_(0, place, weights * values)
    used = bin_weights > 0
    bin_weights, centres = bin_weights[used], (bin_totals / bin_weights)[used]
    few = min(k, LINE_CODEWORDS, len(centres))
    borders = _best_cells(centres, bin_weights, few)
    cell = torch.bucketize(torch.arange(len(centres)), torch.tensor(borders[1:-1]), right=True)
    cell_weights = torch.zeros(few, dtype=torch.float64).index_add_(0, cell, bin_weights)
    cell_totals = torch.zeros(few, dtype=torch.float64).index_add_(0, cell, bin_weights * centres)
    if few == k:
        return (cell_totals / cell_weights).float()
    # High-resolution theory: the best density of levels is that of the numbers to the power 1/3.
    edges = torch.cat([values[:1], (centres[borders[1:-1]] + centres[[b - 1 for b in borders[1:-1]]]) / 2])
    widths = torch.cat([edges[1:], values[-1:]]) - edges
    dense = (cell_weights * widths.square()).pow(1 / 3).cumsum(0)
    wanted = (torch.arange(k, dtype=torch.float64) + 0.5) / k * dense[-1]
    inside = torch.searchsorted(dense, wanted).clamp(max=few - 1)
    before = torch.cat([dense.new_zeros(1), dense[:-1]])[inside]
    share = (wanted - before) / (dense[inside] - before).clamp(min=1e-300)
    return (edges[inside] + share * widths[inside]).float()


def _cells(weights: Tensor, values: Tensor, bins: int) -> Tensor:
    """Share sorted numbers out among bins, ascending, shape (n,), int64; of enough bins each has one."""
    if bins == len(values):
        return torch.arange(bins)
    gaps = torch.diff(values, prepend=values[:1])
    dense = (weights * gaps.square()).pow(1 / 3).cumsum(0) + torch.linspace(0, 1e-9, len(values))
    return (dense / dense[-1] * bins).long().clamp(max=bins - 1)


def _best_cells(centres: Tensor, weights: Tensor, k: int) -> list[int]:
    """Cut sorted numbers into k cells of the least weighted variance: exact, by dynamic programming.

    Returns:
        Where the cells begin, and the end of the last.
    """
    n = len(centres)
    zero = weights.new_zeros(1)
    centres = centres - (weights @ centres) / weights.sum()
    W, A, B = (torch.cat([zero, (weights * centres.pow(power)).cumsum(0)]) for power in (0, 1, 2))
    # Of a cell from i to j, shape (n + 1, n + 1); only where i < j.
    weight, total = W[None] - W[:, None], A[None] - A[:, None]
    cost = B[None] - B[:, None] - total.square() / weight.clamp(min=1e-300)
    cost = torch.where(torch.ones_like(cost, dtype=torch.bool).triu(1), cost.clamp(min=0), torch.inf)
    best, ways = cost[0], []
    for _ in range(k - 1):
        best, way = (best[:, None] + cost).min(0)
        ways.append(way)
    borders = [n]
    for way in reversed(ways):
        borders.append(int(way[borders[-1]]))
    return [0, *reversed(borders)]
