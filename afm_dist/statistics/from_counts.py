"""Moments of embedding tables from the vocabulary's counts: no inference, no Ray."""

from __future__ import annotations

from torch import nn

from afm_dist.dataset.counts import read_counts
from afm_dist.dataset.manifest import Manifest
from afm_dist.errors import DataError, OptionError
from afm_dist.statistics.collected import CollectedMoments
from afm_dist.statistics.keys import field_key
from afm_dist.statistics.moments import moments_of_table
from afm_dist.tables.first_order import first_order_of, joint_rows
from afm_dist.tables.table import Table


def moments_from_counts(
    model: nn.Module, manifest: Manifest, module: str = "embedding", *, absorbs: str | None = None
) -> CollectedMoments:
    """Moments of every field of a fused table from the vocabulary's counts: exact, no inference.

    Args:
        model: Holds the fused table.
        manifest: The dataset whose vocabulary says how often each id occurs in training.
        module: Name of the fused table.
        absorbs: Name of a first-order term whose weight is one more, the last, coordinate of each row.

    Returns:
        By ``module[field]``, the same names as ``collect_moments`` gives; with the counts.

    Raises:
        OptionError: the module is not a fused table, or must not absorb that term.
        DataError: the vocabulary is missing or does not fit, or the table holds NaN.
    """
    table = model.get_submodule(module)
    if not isinstance(table, Table) or table.decoder(0) is not None:
        raise OptionError(
            f"{module} is a {type(table).__name__}; counts serve uncompressed tables of fields only"
        )
    term = None if absorbs is None else first_order_of(model, module, absorbs)
    counts = read_counts(manifest)
    moments, seen = {}, {}
    for i, field in enumerate(table.names):
        rows = table.codes(i).detach().cpu() if term is None else joint_rows(table, term, i)
        try:
            moments[field_key(module, field)] = moments_of_table(rows, counts[field])
        except (ValueError, KeyError) as error:
            raise DataError(f"{module}, field {field!r}: {error}") from error
        seen[field_key(module, field)] = counts[field]
    return CollectedMoments(moments, counts=seen)
