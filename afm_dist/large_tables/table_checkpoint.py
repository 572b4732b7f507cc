"""A checkpoint whose tables stay on the disk: what it holds, and what of it fits in memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from afm_dist import storage
from afm_dist.checkpoint.config import ModelConfig, load_config
from afm_dist.checkpoint.files import CONFIG
from afm_dist.checkpoint.pretrained import fill_
from afm_dist.compression.plan import TABLE, Plan
from afm_dist.compression.rewrite import restructure_, stored_dtypes
from afm_dist.errors import AfmError, DataError, OptionError
from afm_dist.large_tables.stored import StoredTensor, stored_tensors
from afm_dist.modules.tensors import named_tensors
from afm_dist.tables.table import Table

WEIGHT = f"{TABLE}.weight"


@dataclass(frozen=True, kw_only=True)
class TableCheckpoint:
    """An uncompressed table in a checkpoint.

    Attributes:
        location: The checkpoint directory.
        config: What the model is.
        tensors: Where its tensors lie.
        fields: Names of the table's fields.
        cardinalities: Rows of each.
    """

    location: str
    config: ModelConfig
    tensors: Mapping[str, StoredTensor]
    fields: tuple[str, ...]
    cardinalities: tuple[int, ...]

    @classmethod
    def open(cls, location: str) -> TableCheckpoint:
        """Read the description and the headers of the files, and compare the two.

        Raises:
            DataError: not a checkpoint, damaged, or tensors that do not fit the model.
            OptionError: a model without a table to compress, or one that is compressed already.
        """
        location = storage.absolute(location)
        config = load_config(location)
        model = empty_model(config)
        table = dict(model.named_modules()).get(TABLE)
        compressed = any(entry.name == TABLE for entry in config.plan.entries)
        if compressed or WEIGHT in stored_dtypes(model, config.plan):
            raise OptionError(
                "--checkpoint: the table of the model is compressed already, or rounded; give the "
                "uncompressed one"
            )
        if not isinstance(table, Table):
            raise OptionError(
                f"--checkpoint: a {type(model).__name__} has no fused table named {TABLE}; give a model of "
                "one of the built-in architectures"
            )
        tensors = stored_tensors(location)
        expected = {name: tuple(tensor.shape) for name, tensor in named_tensors(model).items()}
        found = {name: tensor.shape for name, tensor in tensors.items()}
        for name in sorted({*expected, *found}):
            if expected.get(name) != found.get(name):
                raise DataError(
                    f"{location}: the tensors do not fit the model ({name} has shape "
                    f"{found.get(name, 'none')}, the model's {expected.get(name, 'none')})"
                )
        return cls(
            location=location,
            config=config,
            tensors=tensors,
            fields=table.names,
            cardinalities=table.cardinalities,
        )

    @property
    def table(self) -> StoredTensor:
        """The embeddings of all fields."""
        return self.tensors[WEIGHT]

    @property
    def nbytes(self) -> int:
        """Of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def mark(self) -> str:
        """Identify this checkpoint: names, sizes and times of change of its files.

        Its digest would take another pass over all of it.
        """
        infos = (
            item
            for item in storage.list_infos(self.location)
            if item.base_name == CONFIG or item.base_name.startswith("model")
        )
        return storage.fingerprint({item.base_name: [item.size, item.mtime_ns] for item in infos})

    def without_rows(self) -> tuple[nn.Module, frozenset[str]]:
        """Build the model with one row, zero, in place of those of each field, and all else as it is.

        Returns:
            The model, and the names of the tensors that have other rows in truth.
        """
        one_each = tuple(
            replace(field, cardinality=1) if field.kind == "categorical" else field
            for field in self.config.fields
        )
        model = empty_model(replace(self.config, fields=one_each))
        tensors: dict[str, Tensor] = {}
        rows = {WEIGHT}
        for name, empty in named_tensors(model).items():
            stored = self.tensors[name]
            if name == WEIGHT or tuple(empty.shape) != stored.shape:
                rows.add(name)
                tensors[name] = torch.zeros(empty.shape, dtype=stored.dtype)
            else:
                tensors[name] = stored.load()
        fill_(model, tensors)
        return model, frozenset(rows)


def empty_model(config: ModelConfig, plan: Plan | None = None) -> nn.Module:
    """Build the structure of a model, on the meta device: nothing is allocated.

    Args:
        config: What it is.
        plan: What becomes of it besides.

    Raises:
        DataError: it cannot be built.
    """
    try:
        with torch.device("meta"):
            model = config.build()
            restructure_(model, config.plan + (plan or Plan()))
    except AfmError as error:
        raise DataError(str(error)) from error
    return model
