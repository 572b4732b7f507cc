"""The methods of compression side by side: where the factors of a layer or a table come from.

A new method is a name in the plan's ``Method`` and a class here; nothing else asks which it is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

from torch import Tensor

from afm_dist.compression.factorize import (
    LinearFactors,
    Projection,
    TableFactors,
    mean_row,
    principal,
    projected_linear,
    projected_table,
    svd_linear,
    svd_table,
)
from afm_dist.compression.outputs import OutputStatistics
from afm_dist.compression.plan import Method, PlanEntry
from afm_dist.compression.weighted import weighted_projection


class Factorization(ABC):
    """One method. ``key`` is always the name of the outputs' statistics."""

    @abstractmethod
    def linear(
        self, weight: Tensor, bias: Tensor | None, key: str, entry: PlanEntry, known: OutputStatistics
    ) -> LinearFactors:
        """Two linear layers in place of one.

        Args:
            weight: W, shape (M, N).
            bias: b, shape (M,), or None.
            key: Of the layer's outputs.
            entry: Rank, activation and κ.
            known: Of the outputs.

        Raises:
            OptionError: statistics that are missing or of another width.
        """

    @abstractmethod
    def table(self, table: Tensor, key: str, entry: PlanEntry, known: OutputStatistics) -> TableFactors:
        """A narrow table and a projection in place of a wide table.

        Args:
            table: D, one row per id, shape (V, T).
            key: Of the looked-up rows.
            entry: The rank.
            known: Of the rows.

        Raises:
            OptionError: statistics that are missing or of another width.
        """

    @abstractmethod
    def mean(self, table: Tensor, key: str, known: OutputStatistics) -> Tensor:
        """What all rows of a table become at rank 0, shape (T,), float64.

        Args:
            table: D, one row per id, shape (V, T).
            key: Of the looked-up rows.
            known: Of the rows.

        Raises:
            OptionError: statistics that are missing or of another width.
        """


class ProjectedOutputs(Factorization):
    """Methods that project the outputs, whatever the weights: layers and tables alike."""

    @abstractmethod
    def projection(self, key: str, width: int, rank: int, known: OutputStatistics) -> Projection:
        """The affine map of some outputs, of the rank asked for."""

    def linear(
        self, weight: Tensor, bias: Tensor | None, key: str, entry: PlanEntry, known: OutputStatistics
    ) -> LinearFactors:
        """The projection before and behind the weight (paper eq. 5)."""
        projection = self.projection(key, weight.shape[0], entry.rank, known)
        return projected_linear(weight, bias, projection, entry.activation, entry.kappa)

    def table(self, table: Tensor, key: str, entry: PlanEntry, known: OutputStatistics) -> TableFactors:
        """The projected rows (paper eq. 10)."""
        return projected_table(table, self.projection(key, table.shape[1], entry.rank, known))

    def mean(self, table: Tensor, key: str, known: OutputStatistics) -> Tensor:
        """Over the rows of the log: E[e]."""
        return known.moments(key, table.shape[1]).mean


class AtomicFeatureMimicking(ProjectedOutputs):
    """``afm``, the paper's: the least error of the outputs, all of which count alike."""

    def projection(self, key: str, width: int, rank: int, known: OutputStatistics) -> Projection:
        """On the principal components."""
        return principal(known.spectrum(key, width), rank)


class SensitivityWeighting(ProjectedOutputs):
    """``weighted``: the least error of the outputs as the logit feels it, to first order."""

    def projection(self, key: str, width: int, rank: int, known: OutputStatistics) -> Projection:
        """On the principal components in the metric of the sensitivity."""
        return weighted_projection(known.moments(key, width), known.sensitivity(key, width), rank)


class SingularValues(Factorization):
    """``svd``, the control: the least error of the weights, whatever the data."""

    def linear(
        self, weight: Tensor, bias: Tensor | None, key: str, entry: PlanEntry, known: OutputStatistics
    ) -> LinearFactors:
        """Of the weight; the data decide the shift of a shifted ReLU."""
        spectrum = known.spectrum(key, weight.shape[0])
        return svd_linear(weight, bias, spectrum, entry.rank, entry.activation, entry.kappa)

    def table(self, table: Tensor, key: str, entry: PlanEntry, known: OutputStatistics) -> TableFactors:
        """Of the table, each row counting once."""
        del key, known
        return svd_table(table, entry.rank)

    def mean(self, table: Tensor, key: str, known: OutputStatistics) -> Tensor:
        """Over the rows of the table, each counting once."""
        del key, known
        return mean_row(table)


FACTORIZATIONS: Mapping[Method, Factorization] = {
    "afm": AtomicFeatureMimicking(),
    "svd": SingularValues(),
    "weighted": SensitivityWeighting(),
}


def table_factors(
    table: Tensor, key: str, entry: PlanEntry, rank: int, known: OutputStatistics
) -> TableFactors:
    """A narrow table and a projection by the entry's method; of rank 0 the mean alone.

    Args:
        table: D, one row per id, shape (V, T).
        key: Of the looked-up rows.
        entry: The method.
        rank: K, of this table.
        known: Of the rows.

    Raises:
        OptionError: statistics that are missing or of another width.
    """
    method = FACTORIZATIONS[entry.method]
    if rank:
        return method.table(table, key, entry.with_rank(rank), known)
    mean = method.mean(table, key, known)
    return TableFactors(
        codes=table.new_empty(len(table), 0), projection=mean.new_empty(len(mean), 0), bias=mean
    )
