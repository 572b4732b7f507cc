"""Codebooks of one field: codes whose codewords, added up, are near the rows in the metric of the logit.

One kind of fit for all stores: a row is approximated by the sum of a codeword of each part. The part of
``vq`` has all coordinates, and so have those of ``rq``; those of ``pq`` have some each, those of a grid one.
Part after part its codes and then its codewords become the best there are, given the others: the error
never rises. Shape legend: S rows, K coordinates, C parts, k codewords.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from afm_dist.methods.quantization.lloyd import BLOCK_ROWS, Sums, first_codewords, nearest, sample
from afm_dist.methods.quantization.metric import COUPLED_FLOOR, FLOOR, CodebookPart, floored, part_of, root_of
from afm_dist.methods.quantization.spec import Layout
from afm_dist.statistics.moments import RANGE_ROWS

MOST_ROUNDS = 40
# Codebooks of more rows than these are fitted to a sample, and then so many rounds to all of them.
SAMPLE_ROWS = 1 << 15
SAMPLE_ROWS_EACH = 32
ROUNDS_OF_ALL = 3
# The error falls by less than this share of itself: done.
ENOUGH = 3e-4
# The step of a grid of so many bits that is best for normally distributed numbers, in deviations
# (Max, "Quantizing for minimum distortion", 1960).
_NORMAL_STEPS = {2: 0.9957, 4: 0.3352, 8: 0.0308}


@dataclass(frozen=True, kw_only=True)
class Codebooks:
    """What stands for the rows of a field.

    Attributes:
        codes: Shape (S, C), int64.
        levels: Rows of K levels, as ``Layout.level_rows`` counts them, shape (R, K), float32, but float16
            numbers.
        owners: Which part each coordinate is of, shape (K,), int64; of ``pq``.
        scales: Of each row, shape (S,), float32, but float16 numbers; of grids with scales by row.
        errors: Error of each part after each step of the fit, weighted as rows are.
    """

    codes: Tensor
    levels: Tensor
    owners: Tensor | None = None
    scales: Tensor | None = None
    errors: Sequence[float] = ()


class Fit:
    """Fits codebooks to the rows of a field.

    Args:
        rows: Shape (S, K), float32.
        weights: How much each row counts, shape (S,), float64, positive.
        metric: G, shape (K, K).
        layout: What is stored.
        seed: Of the first codewords.
    """

    def __init__(self, rows: Tensor, weights: Tensor, metric: Tensor, layout: Layout, seed: int) -> None:
        self._weights, self._layout = weights, layout
        self._metric = floored(metric, COUPLED_FLOOR if layout.kind in ("int", "pq") else FLOOR)
        self._root = root_of(self._metric).float()
        self._mean = _mean_of(rows, weights)
        self._rows = rows - self._mean
        self._generator = torch.Generator().manual_seed(seed)
        self.errors: list[float] = []

    def run(self) -> Codebooks:
        """Fit."""
        if self._layout.kind == "int":
            return self._grid_by_row() if self._layout.by_row else self._grid()
        return self._free()

    def _free(self) -> Codebooks:
        """Fit codewords that are what they like."""
        layout, K = self._layout, self._rows.shape[1]
        if layout.kind == "pq":
            owners = balanced(self._shares(), layout.parts)
            columns = [torch.nonzero(owners == i)[:, 0] for i in range(layout.parts)]
        else:
            owners, columns = None, [torch.arange(K)] * layout.codes
        parts = [part_of(self._metric, own) for own in columns]
        codes = torch.zeros(len(self._rows), len(parts), dtype=torch.int64)
        books = self._books(parts, codes)
        # The mean is in the first codebook with each coordinate; it is rounded with it.
        for i, part in enumerate(parts):
            if i == 0 or owners is not None:
                books[i] = books[i] + self._mean[part.columns]
            books[i] = _half(books[i])
        shifted = [
            book - self._mean[part.columns] if i == 0 or owners is not None else book
            for i, (part, book) in enumerate(zip(parts, books, strict=True))
        ]
        for i in range(len(parts)):
            self._assign(parts, shifted, codes, i)
        if owners is None:
            return Codebooks(codes=codes, levels=torch.cat(books), errors=self.errors)
        levels = torch.zeros(layout.codewords, K)
        for part, book in zip(parts, books, strict=True):
            levels[:, part.columns] = book
        return Codebooks(codes=codes, levels=levels, owners=owners, errors=self.errors)

    def _books(self, parts: Sequence[CodebookPart], codes: Tensor) -> list[Tensor]:
        """Fit the codebooks, and the codes in place; of many rows first to a sample of them."""
        size = max(SAMPLE_ROWS, SAMPLE_ROWS_EACH * self._layout.codewords)
        if len(codes) > size:
            return self._books_of_sample(parts, codes, size)
        books = [torch.zeros(1, len(part.columns)) for part in parts]
        for i, part in enumerate(parts):
            books[i] = self._first(part, parts, books, codes, i)
            self._assign(parts, books, codes, i)
        self._descend(parts, books, codes, MOST_ROUNDS)
        return books

    def _books_of_sample(self, parts: Sequence[CodebookPart], codes: Tensor, size: int) -> list[Tensor]:
        """Fit the codebooks to a sample, and then a few rounds to all rows."""
        rows, weights = self._rows, self._weights
        drawn, self._weights = sample(rows @ self._root, weights, size, self._generator)
        self._rows = rows[drawn]
        books = self._books(parts, torch.zeros(size, len(parts), dtype=torch.int64))
        self._rows, self._weights = rows, weights
        # The sample has its own error.
        self.errors.clear()
        for i in range(len(parts)):
            # Of the parts behind this one there are no codes yet.
            self._assign(parts[: i + 1], books[: i + 1], codes, i)
        self._descend(parts, books, codes, ROUNDS_OF_ALL)
        return books

    def _first(
        self,
        part: CodebookPart,
        parts: Sequence[CodebookPart],
        books: Sequence[Tensor],
        codes: Tensor,
        i: int,
    ) -> Tensor:
        """Give the first codebook of a part, given those before it; of one part improved by itself."""
        k = self._layout.codewords
        left = torch.cat([block for _, block, _ in self._left(parts, books, codes, i)])
        seen = left @ part.seen
        if k >= len(left):
            return left @ part.target
        drawn = first_codewords(seen, self._weights, k, self._generator)
        codes[:, i] = nearest(seen, drawn)
        sums = Sums(k, len(part.columns))
        sums.add(codes[:, i], self._weights, left @ part.target, seen.new_zeros(len(seen)))
        found = sums.means().float()
        empty = sums.weight == 0
        found[empty] = drawn[empty] @ torch.linalg.inv(part.root)
        return found

    def _descend(
        self, parts: Sequence[CodebookPart], books: list[Tensor], codes: Tensor, rounds: int
    ) -> None:
        """Improve codes and codewords part by part, until that gains little."""
        before = torch.inf
        for _ in range(rounds):
            for i in range(len(parts)):
                sums = self._assign(parts, books, codes, i)
                books[i] = self._codewords(parts[i], books[i], sums)
            if before - self.errors[-1] <= ENOUGH * before < torch.inf:
                break
            before = self.errors[-1]

    def _codewords(self, part: CodebookPart, book: Tensor, sums: Sums) -> Tensor:
        """Move each codeword to the mean of its rows; one without rows to the row that is worst off."""
        found = sums.means().float()
        empty = torch.nonzero(sums.weight == 0)[:, 0]
        found[empty] = book[empty]
        if len(found) < len(self._rows):
            wrong = int((sums.worst > 0).sum())
            found[empty[:wrong]] = sums.worst_rows[:wrong][: len(empty)]
        return found

    def _assign(self, parts: Sequence[CodebookPart], books: Sequence[Tensor], codes: Tensor, i: int) -> Sums:
        """Take for each row the best codeword of a part, given its others; note the error."""
        part = parts[i]
        seen_book = books[i] @ part.root
        merged, error = Sums(len(books[i]), len(part.columns)), 0.0
        for own in _ranges(len(codes)):
            sums = Sums(len(books[i]), len(part.columns))
            for rows, left, weights in self._left(parts, books, codes, i, own):
                seen = left @ part.seen
                found = nearest(seen, seen_book)
                codes[rows, i] = found
                apart = (seen - seen_book[found]).square().sum(1)
                sums.add(found, weights, left @ part.target, apart)
                if len(part.columns) == len(self._metric):
                    continue
                left[:, part.columns] -= books[i][found]
                error += float((left @ self._root).square().sum(1).double() @ weights)
            merged.merge(sums)
        if len(part.columns) == len(self._metric):
            error = merged.error
        self.errors.append(error / float(self._weights.sum()))
        return merged

    def _left(
        self,
        parts: Sequence[CodebookPart],
        books: Sequence[Tensor],
        codes: Tensor,
        but: int,
        own: range | None = None,
    ) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Yield blocks of what rows are besides the codewords of all parts but one, with their weights."""
        own = range(len(codes)) if own is None else own
        for start in range(own.start, own.stop, BLOCK_ROWS):
            rows = slice(start, min(start + BLOCK_ROWS, own.stop))
            left = self._rows[rows].clone()
            for i, (part, book) in enumerate(zip(parts, books, strict=True)):
                if i == but:
                    continue
                if len(part.columns) == left.shape[1]:
                    left -= book[codes[rows, i]]
                else:
                    left[:, part.columns] -= book[codes[rows, i]]
            yield rows, left, self._weights[rows]

    def _shares(self) -> Tensor:
        """Say what each coordinate adds to the error of a mean row, shape (K,), float64."""
        squares = torch.zeros(self._rows.shape[1], dtype=torch.float64)
        for rows, weights in zip(self._rows.split(BLOCK_ROWS), self._weights.split(BLOCK_ROWS), strict=True):
            squares += weights @ rows.double().square()
        return squares * self._metric.diagonal()

    def _grid(self) -> Codebooks:
        """Fit a grid of equal steps to each coordinate: codes, then all centres and steps together."""
        layout, K = self._layout, self._rows.shape[1]
        middle = ((1 << layout.bits) - 1) / 2
        places = torch.empty(len(self._rows), K)
        centre, step = self._grid_of(places, middle)
        levels = torch.stack([_half(centre + self._mean), _half(step)])
        self._sweep(places, levels[0] - self._mean, levels[1], middle)
        return Codebooks(codes=(places + middle).round().long(), levels=levels, errors=self.errors)

    def _grid_of(self, places: Tensor, middle: float) -> tuple[Tensor, Tensor]:
        """Give centres and steps, and the places in place; of many rows first those of a sample."""
        rows, weights = self._rows, self._weights
        rounds = MOST_ROUNDS
        if len(rows) > SAMPLE_ROWS:
            drawn, self._weights = sample(rows @ self._root, weights, SAMPLE_ROWS, self._generator)
            self._rows = rows[drawn]
            centre, step = self._grid_of(places[: len(drawn)], middle)
            self._rows, self._weights, rounds = rows, weights, ROUNDS_OF_ALL
            self.errors.clear()
        else:
            centre, step = _first_grid(rows, weights, self._layout.bits)
        for start in range(0, len(places), BLOCK_ROWS):
            part = slice(start, start + BLOCK_ROWS)
            places[part] = _to_grid(rows[part] - centre, step, middle)
        before = torch.inf
        for _ in range(rounds):
            sums = self._sweep(places, centre, step, middle)
            self.errors.append(sums.error / float(weights.sum()))
            if before - self.errors[-1] <= ENOUGH * before < torch.inf:
                break
            before = self.errors[-1]
            centre, step = sums.best(self._metric)
        return centre, step

    def _sweep(self, places: Tensor, centre: Tensor, step: Tensor, middle: float) -> GridSums:
        """Find for each coordinate in turn the best place on its grid, given the others; in place."""
        K = places.shape[1]
        metric, diagonal = self._metric.float(), self._metric.diagonal().float()
        merged = GridSums(K)
        for own in _ranges(len(places)):
            sums = GridSums(K)
            for start in range(own.start, own.stop, BLOCK_ROWS):
                part = slice(start, min(start + BLOCK_ROWS, own.stop))
                x, q = self._rows[part] - centre, places[part]
                left = x - q * step
                for i in range(K):
                    pull = left @ metric[:, i]
                    q[:, i] = _to_grid(x[:, i] + pull / diagonal[i] - left[:, i], step[i], middle)
                    left[:, i] = x[:, i] - q[:, i] * step[i]
                sums.add(self._weights[part], q, self._rows[part], _errors_of(left, metric))
            merged.merge(sums)
        return merged

    def _grid_by_row(self) -> Codebooks:
        """Fit a grid around the mean to each row, whose step is the row's own."""
        K, bits = self._rows.shape[1], self._layout.bits
        middle = ((1 << bits) - 1) / 2
        mean = _half(self._mean)
        codes = torch.zeros(len(self._rows), K, dtype=torch.int64)
        scales = torch.zeros(len(self._rows))
        metric, diagonal = self._metric.float(), self._metric.diagonal().float()
        error = 0.0
        for start in range(0, len(self._rows), BLOCK_ROWS):
            part = slice(start, start + BLOCK_ROWS)
            x = self._rows[part] + self._mean - mean
            own = _half(x.abs().amax(1) / middle)
            q = _to_grid(x, own[:, None], middle)
            best, best_error = (q, own), _errors_of(x - q * own[:, None], metric)
            for _ in range(3):
                for i in range(K):
                    left = x - q * own[:, None]
                    wish = x[:, i] + (left @ metric[:, i] - left[:, i] * diagonal[i]) / diagonal[i]
                    q = q.clone()
                    q[:, i] = _to_grid(wish, own, middle)
                pull = q @ metric
                own = _half(((pull * x).sum(1) / (pull * q).sum(1)).clamp(min=0))
                errors = _errors_of(x - q * own[:, None], metric)
                better = errors < best_error
                best = (torch.where(better[:, None], q, best[0]), torch.where(better, own, best[1]))
                best_error = torch.where(better, errors, best_error)
            codes[part], scales[part] = (best[0] + middle).round().long(), best[1]
            error += float(best_error.double() @ self._weights[part])
        self.errors.append(error / float(self._weights.sum()))
        return Codebooks(codes=codes, levels=mean[None], scales=scales, errors=self.errors)


class GridSums:
    """Sums over rows x on grids, at places q, from which the best centres and steps follow.

    Args:
        width: K.

    Attributes:
        error: Of all rows, weighted.
    """

    def __init__(self, width: int) -> None:
        self.weight, self.error = 0.0, 0.0
        # Of q and x side by side: their sums, and the sums of q times them.
        self.first = torch.zeros(2 * width, dtype=torch.float64)
        self.second = torch.zeros(width, 2 * width, dtype=torch.float64)

    def add(self, weights: Tensor, places: Tensor, rows: Tensor, errors: Tensor) -> None:
        """Add a block."""
        both = torch.cat([places, rows], 1).double()
        self.weight += float(weights.sum())
        self.error += float(errors.double() @ weights)
        self.first += weights @ both
        self.second += (places.double() * weights[:, None]).T @ both

    def merge(self, other: GridSums) -> None:
        """Add the sums of later rows."""
        self.weight += other.weight
        self.error += other.error
        self.first += other.first
        self.second += other.second

    def best(self, metric: Tensor) -> tuple[Tensor, Tensor]:
        """Give the centres c and steps s with the least error of x ≈ c + s∘q, shape (K,) each.

        c is the mean of x − s∘q, and s solves (G∘C_qq)s = (G∘C_qx)1 with the covariances of q and x.
        """
        K = len(metric)
        mean = self.first / self.weight
        covariance = self.second / self.weight - torch.outer(mean[:K], mean)
        normal = metric * covariance[:, :K]
        wanted = (metric * covariance[:, K:]).sum(1)
        # A coordinate that has one place only has no step that counts.
        ridge = (1e-12 * normal.diagonal().max()).clamp(min=1e-30)
        step = torch.linalg.solve(normal + ridge * torch.eye(K, dtype=torch.float64), wanted)
        return (mean[K:] - step * mean[:K]).float(), step.float()


def decoded(books: Codebooks, layout: Layout) -> Tensor:
    """Give the rows that codes and levels stand for, shape (S, K), float32: the plain way to say it."""
    codes, levels = books.codes, books.levels
    if layout.kind == "int":
        middle = ((1 << layout.bits) - 1) / 2
        step = levels[1] if books.scales is None else books.scales[:, None]
        return levels[0] + (codes - middle) * step
    if layout.kind == "pq":
        assert books.owners is not None
        return levels.gather(0, codes[:, books.owners])
    first = torch.arange(codes.shape[1]) * (len(levels) // codes.shape[1])
    return levels[codes + first].sum(1)


def balanced(shares: Tensor, parts: int) -> Tensor:
    """Share coordinates out among parts such that none is empty and their sums are alike.

    Args:
        shares: Of each coordinate, shape (K,), not negative.
        parts: C ≤ K.

    Returns:
        The part of each, shape (K,), int64.
    """
    owners, sums, sizes = torch.zeros(len(shares), dtype=torch.int64), [0.0] * parts, [0] * parts
    order = shares.argsort(descending=True, stable=True).tolist()
    for place, column in enumerate(order):
        # The last ones go to the parts that have none.
        empty = [i for i in range(parts) if not sizes[i]]
        among = empty if len(empty) >= len(order) - place else range(parts)
        least = min(among, key=lambda i: (sums[i], sizes[i]))
        owners[column] = least
        sums[least] += float(shares[column])
        sizes[least] += 1
    return owners


def _ranges(rows: int) -> Iterator[range]:
    """Yield the rows of each task, as ``row_groups`` cuts a field."""
    for start in range(0, rows, RANGE_ROWS):
        yield range(start, min(start + RANGE_ROWS, rows))


def _mean_of(rows: Tensor, weights: Tensor) -> Tensor:
    total = torch.zeros(rows.shape[1], dtype=torch.float64)
    for own, weight in zip(rows.split(BLOCK_ROWS), weights.split(BLOCK_ROWS), strict=True):
        total += weight @ own.double()
    return (total / weights.sum()).float()


def _half(numbers: Tensor) -> Tensor:
    """Round to float16 numbers, of which the largest stands for all that are larger."""
    largest = torch.finfo(torch.float16).max
    return numbers.clamp(-largest, largest).half().float()


def _errors_of(left: Tensor, metric: Tensor) -> Tensor:
    return ((left @ metric) * left).sum(1)


def _to_grid(numbers: Tensor, step: Tensor, middle: float) -> Tensor:
    """Find the nearest of …, −½, ½, … steps, as many as there are on either side of the middle."""
    # A step that fell below 0 counts its places backwards.
    places = numbers / torch.where(step.abs() < 1e-30, 1e-30, step) + middle
    return places.round().clamp(0, 2 * middle) - middle


def _first_grid(rows: Tensor, weights: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Give centre and step of each coordinate, for rows around 0."""
    squares = torch.zeros(rows.shape[1], dtype=torch.float64)
    for own, weight in zip(rows.split(BLOCK_ROWS), weights.split(BLOCK_ROWS), strict=True):
        squares += weight @ own.double().square()
    deviation = (squares / weights.sum()).sqrt().float()
    low, high = rows.aminmax(dim=0)
    widest = (high - low) / ((1 << bits) - 1)
    return torch.zeros(rows.shape[1]), torch.minimum(widest, _NORMAL_STEPS[bits] * deviation).clamp(min=1e-30)
