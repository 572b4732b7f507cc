"""How the first-order weights of ids are quantised: rows of one number, of which the logit is the sum."""

from __future__ import annotations

from dataclasses import replace

import torch

from afm_dist.errors import OptionError
from afm_dist.methods.quantization.config import Quantization, check_fields
from afm_dist.methods.quantization.fields import KnownRows
from afm_dist.methods.quantization.method import QuantizationMethod, fill_field, left_alone
from afm_dist.methods.quantization.spec import Spec
from afm_dist.methods.quantization.store import QuantizedStore
from afm_dist.runtime import console
from afm_dist.statistics.keys import field_key
from afm_dist.statistics.statistics import Statistics
from afm_dist.tables.first_order import LinearTerm


class QuantizationOfFirstOrder(QuantizationMethod[LinearTerm]):
    """A store of the same fields; an error of a weight is one of the logit, so no metric is needed."""

    def examples(self, module: LinearTerm) -> list[Quantization]:
        """Give a grid, a codebook, and less for rare ids."""
        return [Quantization(store=word) for word in ("int8", "int4-row", "vq1", "vq2:3+mean", "float16")]

    def refusal(self, module: LinearTerm) -> str | None:
        """Refuse weights that are no plain numbers."""
        return None if module.store is None else "is stored in another way already; start from plain weights"

    def needs_sensitivity(self, config: Quantization) -> bool:
        """Tell that it is known: 1."""
        del config
        return False

    def build(self, name: str, module: LinearTerm, config: Quantization) -> LinearTerm:
        """Make a term with a store without values; the weights of the numbers are taken over."""
        check_fields(name, module.names, config)
        specs = [self._requested(module, i, config) for i in range(len(module.cardinalities))]
        if any(spec.own is not None for spec in specs):
            raise OptionError(
                f"{name}: its rare ids share no row; in place of @N write WAY:N+mean, of as many bytes"
            )
        layouts = [
            self._spec(module, i, config).layouts(ids, 1) for i, ids in enumerate(module.cardinalities)
        ]
        new = LinearTerm(
            module.cardinalities,
            len(module.numeric),
            sparse=module.sparse,
            names=module.names,
            store=QuantizedStore(layouts, sparse=module.sparse),
        )
        new.numeric = module.numeric
        return new

    def fill(
        self, new: LinearTerm, name: str, module: LinearTerm, config: Quantization, known: Statistics
    ) -> None:
        """Fit codes and levels, field by field."""
        assert isinstance(new.store, QuantizedStore)
        alone = []
        for i, _ in enumerate(module.cardinalities):
            field = module.names[i] if module.names else str(i)
            rows = KnownRows.of(field_key(name, field), module.rows(i), known)
            spec = self._spec(module, i, config)
            exact = replace(rows, sensitivity=torch.ones(1, 1, dtype=torch.float64))
            fill_field(new.store, i, exact, spec, config)
            if spec != self._requested(module, i, config):
                alone.append(field)
        if alone:
            console.warn(left_alone(f"{name}: {', '.join(alone)}"))

    @staticmethod
    def _requested(module: LinearTerm, field: int, config: Quantization) -> Spec:
        return config.spec_of(module.names[field]) if module.names else Spec.parse(config.store)

    def _spec(self, module: LinearTerm, field: int, config: Quantization) -> Spec:
        return self._requested(module, field, config).effective(module.cardinalities[field], 1)
