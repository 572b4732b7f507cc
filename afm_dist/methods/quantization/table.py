"""How the fused table of this library's models is quantised, field by field, alone or on top of low rank."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace

from afm_dist.compression.allocate import Choice
from afm_dist.compression.method import Candidates
from afm_dist.errors import OptionError
from afm_dist.methods.quantization.config import Quantization, check_fields
from afm_dist.methods.quantization.fields import KnownRows, quantised, quantised_range
from afm_dist.methods.quantization.method import QuantizationMethod, fill_field, left_alone
from afm_dist.methods.quantization.options import EXAMPLES, LONGEST, options, tiers
from afm_dist.methods.quantization.spec import FLOAT, Spec
from afm_dist.methods.quantization.store import QuantizedStore
from afm_dist.runtime import console
from afm_dist.statistics.keys import field_key
from afm_dist.statistics.statistics import Statistics
from afm_dist.tables.fused import FusedEmbedding
from afm_dist.tables.parts import SharedSlot


class QuantizationOfFused(QuantizationMethod[FusedEmbedding]):
    """Each field has a store of its own; projections in front of it stay, and are trained on."""

    def examples(self, module: FusedEmbedding) -> list[Quantization]:
        """Give one of each kind, and some fields that differ."""
        found = [Quantization(store=word) for word in EXAMPLES]
        words = [*EXAMPLES, "mean"]
        fields = {field: words[i % len(words)] for i, field in enumerate(module.names)}
        return [*found, Quantization(store="int4", fields=fields)]

    def refusal(self, module: FusedEmbedding) -> str | None:
        """Refuse rows that are no plain numbers."""
        if module.store is not None:
            return "has rows that are stored in another way already; start from plain ones"
        if module.address is not None:
            return "has ids that share rows; start from a table with a row for each"
        return None

    def build(self, name: str, module: FusedEmbedding, config: Quantization) -> FusedEmbedding:
        """Make a table with the same projections, and a store without values."""
        check_fields(name, module.names, config)
        specs, width = _specs(module, config), module.code_dim
        rows = list(zip(specs, module.cardinalities, strict=True))
        own = [ids if spec.own is None else min(spec.own, ids) for spec, ids in rows]
        shares = any(spec.slots(ids) < ids for spec, ids in rows)
        new = FusedEmbedding(
            module.names,
            module.cardinalities,
            module.dim,
            code_dim=None if module.projection is None else width,
            sparse=module.sparse,
            address=SharedSlot(module.cardinalities, own) if shares else None,
            store=QuantizedStore([spec.layouts(ids, width) for spec, ids in rows], sparse=module.sparse),
        )
        new.projection, new.bias = deepcopy(module.projection), deepcopy(module.bias)
        new.folded = module.folded
        return new

    def fill(
        self,
        new: FusedEmbedding,
        name: str,
        module: FusedEmbedding,
        config: Quantization,
        known: Statistics,
    ) -> None:
        """Fit codes and levels, field by field."""
        store = new.store
        assert isinstance(store, QuantizedStore)
        for i, spec in enumerate(_specs(module, config)):
            key, sensitive = field_key(name, module.names[i]), self.needs_sensitivity(config)
            rows = KnownRows.of(key, module.codes(i), known, sensitive=sensitive)
            fill_field(store, i, rows, spec, config)
        _warn_of_unchanged(name, module, config)

    def candidates(
        self,
        name: str,
        module: FusedEmbedding,
        config: Quantization,
        known: Statistics,
        cost: Callable[[Quantization], int],
        *,
        by_field: bool,
    ) -> Candidates:
        """List all ways to store the table, and each of its fields.

        Raises:
            OptionError: the model has no values, or the sensitivity is missing.
        """
        if any(parameter.is_meta for parameter in module.parameters()):
            raise OptionError(
                f"method {config.label!r} of {name}: what it does to the logit follows from the rows; give "
                "allocate the model with its values"
            )
        ways = [self._ways(name, module, i, config, known) for i in range(len(module.names))]
        base = cost(replace(config, store="mean", fields=None)) - sum(own["mean"].cost for own in ways)
        whole = []
        for word in dict.fromkeys(word for own in ways for word in own):
            # A field for which a way saves nothing stays as it is.
            chosen = [own.get(word) or own[FLOAT.word] for own in ways]
            total = base + sum(choice.cost for choice in chosen)
            if total < 0:
                error = sum(choice.error for choice in chosen)
                whole.append(Choice(replace(config, store=word, fields=None), total, error))
        if not by_field:
            return Candidates(whole=whole)
        fields = {}
        for i, field in enumerate(module.names):
            tiered = self._tiers(name, module, i, config, known)
            fields[field] = _unbeaten([*ways[i].values(), *tiered])
        return Candidates(whole=whole, fields=fields, base=base, combine=config.with_specs)

    def _rows(self, name: str, module: FusedEmbedding, i: int, known: Statistics) -> KnownRows:
        """Give the rows of a field, with the sensitivity.

        Raises:
            OptionError: it was not measured.
        """
        key = field_key(name, module.names[i])
        known.sensitivity(key, module.code_dim)
        return KnownRows.of(key, module.codes(i), known)

    def _ways(
        self, name: str, module: FusedEmbedding, i: int, config: Quantization, known: Statistics
    ) -> dict[str, Choice]:
        """List the ways to store a field as a whole, by their words, each with its own bytes."""
        rows = self._rows(name, module, i, known)
        found = {}
        for spec in options(module.cardinalities[i], module.code_dim):
            (one,) = quantised(rows, spec, config)
            found[spec.word] = Choice(spec, one.layout.bytes, one.error)
        return found

    def _tiers(
        self, name: str, module: FusedEmbedding, i: int, config: Quantization, known: Statistics
    ) -> list[Choice]:
        """List the ways to store the first ids of a field in another way than the others."""
        ids, width = module.cardinalities[i], module.code_dim
        rows = self._rows(name, module, i, known)
        found = []
        for end, (heads, tails) in tiers(ids, width).items():
            first = [quantised_range(rows, 0, end, end, way, config) for way in heads]
            rest = [quantised_range(rows, end, ids, ids - end, way, config) for way in tails]
            found += [
                Choice(
                    Spec(ways=(head, tail), ends=(end,)),
                    one.layout.bytes + other.layout.bytes,
                    one.error + other.error,
                )
                for head, one in zip(heads, first, strict=True)
                for tail, other in zip(tails, rest, strict=True)
            ]
        return found

    def smallest(self, module: FusedEmbedding, config: Quantization, *, by_field: bool) -> list[Quantization]:
        """Give the mean of each field."""
        del module, by_field
        return [replace(config, store="mean", fields=None)]

    def longest(self, module: FusedEmbedding, config: Quantization, *, by_field: bool) -> Quantization:
        """Give the longest word for each field."""
        fields = dict.fromkeys(module.names, LONGEST) if by_field else None
        return replace(config, store=LONGEST, fields=fields)


def _specs(module: FusedEmbedding, config: Quantization) -> list[Spec]:
    """Give how each field is stored."""
    return [
        config.spec_of(field).effective(ids, module.code_dim)
        for field, ids in zip(module.names, module.cardinalities, strict=True)
    ]


def _unbeaten(choices: Sequence[Choice]) -> list[Choice]:
    """Leave out choices that another one beats in bytes or error, and does not lose to in the other."""
    kept: list[Choice] = []
    for choice in sorted(choices, key=lambda each: (each.cost, each.error)):
        if not kept or choice.error < kept[-1].error:
            kept.append(choice)
    return kept


def _warn_of_unchanged(name: str, module: FusedEmbedding, config: Quantization) -> None:
    """Say which fields stay as they are."""
    alone = [
        field
        for field, spec in zip(module.names, _specs(module, config), strict=True)
        if spec != config.spec_of(field)
    ]
    if alone:
        console.warn(left_alone(f"{name}: {', '.join(alone)}"))
