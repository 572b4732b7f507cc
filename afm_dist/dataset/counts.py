"""How often each id occurs: the vocabulary's counts."""

from __future__ import annotations

import io

import numpy as np
import polars as pl
import torch
from torch import Tensor

from afm_dist import storage
from afm_dist.dataset.manifest import Manifest
from afm_dist.errors import DataError


def read_counts(manifest: Manifest) -> dict[str, Tensor]:
    """How often each id of each categorical field occurs in the training split, from the vocabulary.

    Returns:
        By field name: shape (cardinality,), int64.

    Raises:
        DataError: a vocabulary is missing, truncated, altered, or disagrees with the manifest.
    """
    counts = {}
    rows = manifest.rows("train")
    for field in manifest.categorical:
        file = manifest.vocabulary.get(field.name)
        if file is None:
            raise DataError(
                f"{manifest.location}: the manifest lists no vocabulary of field {field.name!r}; "
                "prepare the data again"
            )
        location = storage.join(manifest.location, file.path)
        try:
            frame = pl.read_parquet(io.BytesIO(manifest.read(file)), columns=["id", "count"])
        except pl.exceptions.PolarsError as error:
            raise DataError(f"{location}: damaged vocabulary ({error}); prepare the data again") from error
        frame = frame.sort("id")
        ids, values = frame["id"].to_numpy(), frame["count"].to_numpy()
        if not np.array_equal(ids, np.arange(field.cardinality)) or int(values.sum()) != rows:
            raise DataError(
                f"{location}: {len(ids)} ids with {int(values.sum())} occurrences, but the manifest has "
                f"{field.cardinality} ids and {rows} training rows; prepare the data again"
            )
        counts[field.name] = torch.from_numpy(values.astype(np.int64))
    return counts
