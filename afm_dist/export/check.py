"""Whether an exported file computes what the model computes.

Shape legend: B batch, F categorical fields, C numeric fields.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from afm_dist.dataset.manifest import Field, Manifest
from afm_dist.dataset.reader import read_batches
from afm_dist.errors import AfmError
from afm_dist.export.formats import Run

REAL_ROWS = 10_000
# Of a logit: what another order of the same sums makes grows with the numbers.
ROUND_OFF = 1e-5
# Compiled code has other ways for few rows, for multiples of a vector's length, and for the rest.
_SIZES = (0, 1, 1, 1, 2, 3, 17, 256, 301)
# Ids outside any table, besides a field's cardinality: just below it, and where arithmetic overflows.
_OUTSIDE = (-1, -(2**63), 2**63 - 1, 2**31)

Inputs = tuple[Tensor, Tensor]


class ParityError(AfmError):
    """A file that does not compute what the model does. Exit code 1."""


@dataclass(frozen=True)
class Parity:
    """How far a file's logits are from the model's.

    Attributes:
        difference: The largest absolute difference.
        rows: How many were compared.
        real_rows: How many of these are of a dataset; the others were made up.
    """

    difference: float
    rows: int
    real_rows: int


def check(
    run: Run,
    model: nn.Module,
    fields: Sequence[Field],
    *,
    bound: float,
    data: Manifest | None,
    name: str,
    of_largest: bool = False,
    advice: str = "",
) -> Parity:
    """Compare a file with the model: on a dataset's rows, on made-up ones, and on ids outside their field.

    Args:
        run: The file.
        model: Called with ids (B, F) and numbers (B, C); gives logits (B,).
        fields: Its categorical and numeric fields.
        bound: The largest absolute difference of a logit that is accepted, or ``ROUND_OFF`` of the logit
            where that is more.
        data: Where real rows are, of the test split or else of another; None: there are none.
        name: Of the file, for errors.
        of_largest: Accept ``ROUND_OFF`` of the largest logit for all of them. A model whose interactions are
            computed by another formula is off by so much where large numbers cancel to a small logit.
        advice: What to do about differences above the bound.

    Raises:
        ParityError: a difference above the bound, another shape or type, or a number for a row with an
            id outside its field.
        DataError: the dataset cannot be read.
    """
    real = _Differences(model, run, fields, bound, name)
    for batch in _real_batches(data) if data else ():
        real.add(*batch)
    made = _Differences(model, run, fields, bound, name)
    for batch in made_up_batches(fields):
        made.add(*batch)
    for what, each in (("rows of the dataset", real), ("made-up rows", made)):
        logit, excess = "logit", each.excess
        if of_largest:
            logit, excess = "largest logit", each.largest / max(bound, ROUND_OFF * each.magnitude)
        # NaN is no difference below a bound, either.
        if not excess <= 1:
            raise ParityError(
                f"{name}: not written, for its logits differ from the model's by up to {each.largest:.3g} on "
                f"{each.rows:,} {what}, where {bound:.3g} is accepted (or {ROUND_OFF:.3g} of the {logit}; "
                f"the model's reach {each.magnitude:.3g}){advice}"
            )
    if of_largest:
        bound = max(bound, ROUND_OFF * max(real.magnitude, made.magnitude))
    _check_outside(run, model, fields, bound=bound, name=name)
    return Parity(difference=max(real.largest, made.largest), rows=real.rows + made.rows, real_rows=real.rows)


class _Differences:
    """The largest difference over some batches, and the largest of what is accepted of its logit."""

    def __init__(self, model: nn.Module, run: Run, fields: Sequence[Field], bound: float, name: str) -> None:
        self._model, self._run, self._fields, self._bound, self._name = model, run, fields, bound, name
        self.largest = 0.0
        self.excess = 0.0
        self.magnitude = 0.0
        self.rows = 0

    def add(self, ids: Tensor, numeric: Tensor) -> None:
        with torch.inference_mode():
            expected = self._model(ids, numeric)
        found = self._run(*inputs_of(self._fields, ids, numeric))
        if found.shape != expected.shape or found.dtype != expected.dtype:
            raise ParityError(
                f"{self._name}: not written, for {len(ids)} rows give logits of {found.dtype} and shape "
                f"{tuple(found.shape)} where the model's are of {expected.dtype} and {tuple(expected.shape)}"
            )
        self.rows += len(ids)
        if len(ids):
            # Unlike Python's, torch's maximum of something and NaN is NaN.
            differences = (found - expected).abs()
            self.largest = float(torch.maximum(differences.max(), torch.tensor(self.largest)))
            excess = _excess(found, expected, self._bound)
            self.excess = float(torch.maximum(excess, torch.tensor(self.excess)))
            self.magnitude = max(self.magnitude, float(expected.abs().max()))


def _excess(found: Tensor, expected: Tensor, bound: float) -> Tensor:
    """Return the largest difference over what is accepted for its logit; above 1 it is refused."""
    return ((found - expected).abs() / (ROUND_OFF * expected.abs()).clamp(min=bound)).max()


def inputs_of(fields: Sequence[Field], ids: Tensor, numeric: Tensor) -> tuple[Tensor, ...]:
    """Return what a file is called with: without numeric fields, ids only."""
    return (ids, numeric) if any(field.kind == "numeric" for field in fields) else (ids,)


def made_up_batches(fields: Sequence[Field]) -> Iterator[Inputs]:
    """Batches of several sizes with every field's unknown, first and last id, without and with numbers.

    Args:
        fields: Categorical and numeric fields.
    """
    cardinalities = torch.tensor([field.cardinality for field in fields if field.kind == "categorical"])
    n_numeric = len(fields) - len(cardinalities)
    generator = torch.Generator().manual_seed(0)
    last = cardinalities - 1
    edges = torch.stack([torch.zeros_like(last), last.clamp(max=1), last])
    row = 0
    for rows in _SIZES:
        ids = (torch.rand(rows, len(last), generator=generator, dtype=torch.float64) * cardinalities).long()
        numeric = torch.randn(rows, n_numeric, generator=generator)
        # Each edge by itself, in the first rows; later edges of one field among any ids of the others.
        for i in range(rows):
            edge = edges[row % len(edges)]
            if row < 2 * len(edges):
                ids[i] = edge
                numeric[i] *= row % 2
            else:
                ids[i, row % len(last)] = edge[row % len(last)]
            row += 1
        yield ids, numeric


def _real_batches(data: Manifest) -> Iterable[Inputs]:
    """Read the first rows of the test split, or of one that has rows."""
    split = next((name for name in ("test", "validation") if data.rows(name)), "train")
    for batch in read_batches(data, data.shards(split), REAL_ROWS):
        yield batch.ids.long(), batch.numeric
        return


def _check_outside(run: Run, model: nn.Module, fields: Sequence[Field], *, bound: float, name: str) -> None:
    """Rows with an id outside its field give NaN, and the rows between them what they always give."""
    categorical = [field for field in fields if field.kind == "categorical"]
    n_numeric = len(fields) - len(categorical)
    cases = [(i, value) for i, field in enumerate(categorical) for value in (field.cardinality, *_OUTSIDE)]
    good = torch.zeros(2 * len(cases), len(categorical), dtype=torch.int64)
    ids = good.clone()
    for case, (i, value) in enumerate(cases):
        ids[2 * case, i] = value
    numeric = torch.zeros(len(ids), n_numeric)
    found = run(*inputs_of(fields, ids, numeric))
    with torch.inference_mode():
        expected = model(good, numeric)
    for case, (i, value) in enumerate(cases):
        if not found[2 * case].isnan():
            raise ParityError(
                f"{name}: not written, for it gives the logit {float(found[2 * case]):.3g} for id {value} of "
                f"field {categorical[i].name!r}, which has {categorical[i].cardinality} ids; it must be NaN"
            )
    difference = float((found - expected)[1::2].abs().max())
    if not _excess(found[1::2], expected[1::2], bound) <= 1:
        raise ParityError(
            f"{name}: not written, for ids outside their field change the logits of other rows, by up to "
            f"{difference:.3g} where {bound:.3g} is accepted"
        )
