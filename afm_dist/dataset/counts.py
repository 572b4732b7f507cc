"""How often each id occurs: the vocabulary's counts."""

from __future__ import annotations

import torch
from torch import Tensor

from afm_dist import storage
from afm_dist.dataset.manifest import Manifest
from afm_dist.dataset.vocabulary_file import read_count_range, vocabulary_of
from afm_dist.errors import DataError


def read_counts(manifest: Manifest) -> dict[str, Tensor]:
    """Return how often each id of each categorical field occurs in the training split, from the vocabulary.

    Returns:
        By field name: shape (cardinality,), int64.

    Raises:
        DataError: a vocabulary is missing, truncated, altered, or disagrees with the manifest.
    """
    counts = {}
    rows = manifest.rows("train")
    for field in manifest.categorical:
        file = vocabulary_of(manifest, field)
        manifest.check(file)
        values = read_count_range(manifest, field, 0, field.cardinality)
        if int(values.sum()) != rows:
            raise DataError(
                f"{storage.join(manifest.location, file.path)}: {int(values.sum())} occurrences, but the "
                f"manifest has {rows} training rows; prepare the data again"
            )
        counts[field.name] = torch.from_numpy(values)
    return counts
