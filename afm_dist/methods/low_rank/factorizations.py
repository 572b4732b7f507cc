"""Where the factors of a layer or a table come from: the variants of low rank side by side.

A new variant is a name in ``Factors`` and a class here; nothing else asks which it is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

from torch import Tensor

from afm_dist.methods.low_rank.config import Factors, LowRank
from afm_dist.methods.low_rank.factorize import (
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
from afm_dist.methods.low_rank.weighted import weighted_projection
from afm_dist.statistics.statistics import Statistics


class Factorization(ABC):
    """One variant. ``key`` is always the name of the outputs' statistics."""

    @abstractmethod
    def linear(
        self, weight: Tensor, bias: Tensor | None, key: str, config: LowRank, known: Statistics
    ) -> LinearFactors:
        """Two linear layers in place of one.

        Args:
            weight: W, shape (M, N).
            bias: b, shape (M,), or None.
            key: Of the layer's outputs.
            config: Rank, activation and κ.
            known: Of the outputs.

        Raises:
            OptionError: statistics that are missing or of another width.
        """

    @abstractmethod
    def table(self, table: Tensor, key: str, config: LowRank, known: Statistics) -> TableFactors:
        """Make a narrow table and a projection in place of a wide table.

        Args:
            table: D, one row per id, shape (V, T).
            key: Of the looked-up rows.
            config: The rank.
            known: Of the rows.

        Raises:
            OptionError: statistics that are missing or of another width.
        """

    def needs_sensitivity(self) -> bool:
        """Tell whether the factors depend on the sensitivity of the logit."""
        return False

    @abstractmethod
    def encoder(self, key: str, rank: int, factors: TableFactors, known: Statistics) -> Tensor:
        """Give what makes codes of rows, code = B·e, shape (K, T), float64.

        Args:
            key: Of the looked-up rows.
            rank: K.
            factors: That were made of the table.
            known: Of the rows.
        """

    @abstractmethod
    def mean(self, table: Tensor, key: str, known: Statistics) -> Tensor:
        """Compute what all rows of a table become at rank 0, shape (T,), float64.

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
    def projection(self, key: str, width: int, rank: int, known: Statistics) -> Projection:
        """Compute the affine map of some outputs, of a given rank."""

    def encoder(self, key: str, rank: int, factors: TableFactors, known: Statistics) -> Tensor:
        """Give the projection's."""
        return self.projection(key, len(factors.bias), rank, known).encode

    def linear(
        self, weight: Tensor, bias: Tensor | None, key: str, config: LowRank, known: Statistics
    ) -> LinearFactors:
        """Compute the projection before and behind the weight (paper eq. 5)."""
        projection = self.projection(key, weight.shape[0], config.rank, known)
        return projected_linear(weight, bias, projection, config.activation, config.kappa)

    def table(self, table: Tensor, key: str, config: LowRank, known: Statistics) -> TableFactors:
        """Compute the projected rows (paper eq. 10)."""
        return projected_table(table, self.projection(key, table.shape[1], config.rank, known))

    def mean(self, table: Tensor, key: str, known: Statistics) -> Tensor:
        """Over the rows of the log: E[e]."""
        return known.moments(key, table.shape[1]).mean


class AtomicFeatureMimicking(ProjectedOutputs):
    """``afm``, the paper's: the least error of the outputs, all of which count alike."""

    def projection(self, key: str, width: int, rank: int, known: Statistics) -> Projection:
        """On the principal components."""
        return principal(known.spectrum(key, width), rank)


class SensitivityWeighting(ProjectedOutputs):
    """``weighted``: the least error of the logit, to first order: outputs in the metric of E[ggᵀ]."""

    def needs_sensitivity(self) -> bool:
        """Tell that they do."""
        return True

    def projection(self, key: str, width: int, rank: int, known: Statistics) -> Projection:
        """On the principal components in the metric of the sensitivity."""
        return weighted_projection(known.observed(key, width), known.sensitivity(key, width), rank)


class SingularValues(Factorization):
    """``svd``, the control: the least error of the weights, whatever the data."""

    def encoder(self, key: str, rank: int, factors: TableFactors, known: Statistics) -> Tensor:
        """Give the singular vectors."""
        del key, rank, known
        return factors.projection.T

    def linear(
        self, weight: Tensor, bias: Tensor | None, key: str, config: LowRank, known: Statistics
    ) -> LinearFactors:
        """Of the weight; the data decide the shift of a shifted ReLU."""
        spectrum = known.spectrum(key, weight.shape[0])
        return svd_linear(weight, bias, spectrum, config.rank, config.activation, config.kappa)

    def table(self, table: Tensor, key: str, config: LowRank, known: Statistics) -> TableFactors:
        """Of the table, each row counting once."""
        del key, known
        return svd_table(table, config.rank)

    def mean(self, table: Tensor, key: str, known: Statistics) -> Tensor:
        """Over the rows of the table, each counting once."""
        del key, known
        return mean_row(table)


FACTORIZATIONS: Mapping[Factors, Factorization] = {
    "afm": AtomicFeatureMimicking(),
    "svd": SingularValues(),
    "weighted": SensitivityWeighting(),
}


def table_factors(table: Tensor, key: str, config: LowRank, rank: int, known: Statistics) -> TableFactors:
    """Make a narrow table and a projection by the config's factors; of rank 0 the mean alone.

    Args:
        table: D, one row per id, shape (V, T).
        key: Of the looked-up rows.
        config: Where the factors come from.
        rank: K, of this table.
        known: Of the rows.

    Raises:
        OptionError: statistics that are missing or of another width.
    """
    method = FACTORIZATIONS[config.factors]
    if rank:
        return method.table(table, key, config.with_rank(rank), known)
    mean = method.mean(table, key, known)
    return TableFactors(
        codes=table.new_empty(len(table), 0), projection=mean.new_empty(len(mean), 0), bias=mean
    )
