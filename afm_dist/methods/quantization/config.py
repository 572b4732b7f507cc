"""What a plan says of rows that are quantised."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, get_args

from afm_dist.compression.config import MethodConfig
from afm_dist.errors import OptionError
from afm_dist.methods.quantization.spec import Spec

Metric = Literal["logit", "plain"]
Weighting = Literal["counts", "log-counts", "equal"]

# Of one store, so that a line stays one.
_NAMED_FIELDS = 4


@dataclass(frozen=True, kw_only=True)
class Quantization(MethodConfig):
    """Codes of few bits in place of the rows of a table, field by field.

    Attributes:
        store: How the rows are stored, as ``Spec`` reads it: ``int8``, ``vq6``, ``rq2x8:1000+vq4``, ….
        fields: The same of the fields of a fused table for which it is another.
        metric: Which errors count: ``logit``, those that the logit depends on, (e − ê)ᵀG(e − ê) with
            G = E[ggᵀ]; ``plain``, all alike.
        weighting: How much a row counts: ``counts``, as often as its id occurs; ``log-counts``, the whole
            part of the binary logarithm of that; ``equal``.
        seed: Of the first codewords.
    """

    tag: ClassVar[str] = "quantization"

    store: str
    fields: Mapping[str, str] | None = None
    metric: Metric = "logit"
    weighting: Weighting = "counts"
    seed: int = 0

    def __post_init__(self) -> None:
        Spec.parse(self.store)
        if self.fields is not None:
            if not isinstance(self.fields, Mapping) or not all(isinstance(key, str) for key in self.fields):
                raise OptionError(f"fields {self.fields!r}: a way to store each field is needed")
            for word in self.fields.values():
                Spec.parse(word)
        for name, value, known in (
            ("metric", self.metric, get_args(Metric)),
            ("weighting", self.weighting, get_args(Weighting)),
        ):
            if value not in known:
                raise OptionError(f"{name} {value!r}: choose from {', '.join(known)}")
        if type(self.seed) is not int or not 0 <= self.seed < 1 << 63:
            raise OptionError(f"seed {self.seed!r}: a whole number, at least 0, is needed")

    @property
    def label(self) -> str:
        """Name the store; of several ``mixed``."""
        return self.store if not self.fields else "mixed"

    @property
    def in_words(self) -> str:
        """Say ``to vq6``, or ``by field (vq6 for 11 fields; int8 for site)``."""
        if not self.fields:
            return f"to {self.store}"
        named: dict[str, list[str]] = {}
        for field, word in self.fields.items():
            named.setdefault(word, []).append(field)
        listed = [
            f"{word} for {', '.join(names) if len(names) <= _NAMED_FIELDS else f'{len(names)} fields'}"
            for word, names in sorted(named.items())
        ]
        return f"by field ({'; '.join([*listed, f'{self.store} for others'])})"

    def details(self) -> dict[str, str]:
        """Give the stores, with the number of fields of each where they differ."""
        stored = self.store
        if self.fields:
            counted = Counter(self.fields.values()).most_common()
            stored = ", ".join([*(f"{word} ({count})" for word, count in counted), f"{self.store} (others)"])
        return {"Stored as": stored, "Metric": self.metric, "Rows weighted by": self.weighting}

    def structure(self) -> dict[str, Any]:
        """Give the stores."""
        return {"method": self.tag, "store": self.store, "fields": dict(self.fields or {})}

    def to_json(self) -> dict[str, Any]:
        """Give the fields as plain values, without those that are as if not given."""
        value = super().to_json() | ({} if self.fields is None else {"fields": dict(self.fields)})
        usual = {"metric": "logit", "weighting": "counts", "seed": 0}
        return {key: own for key, own in value.items() if key not in usual or own != usual[key]}

    def spec_of(self, field: str) -> Spec:
        """Give how a field is stored."""
        return Spec.parse((self.fields or {}).get(field, self.store))

    def with_specs(self, specs: Mapping[str, Spec]) -> Quantization:
        """Give the same with a store for each field; the most frequent one is not named field by field."""
        words = {field: spec.word for field, spec in specs.items()}
        ((store, _),) = Counter(words.values()).most_common(1)
        others = {field: word for field, word in words.items() if word != store}
        return replace(self, store=store, fields=others or None)


def check_fields(name: str, known: Sequence[str], config: Quantization) -> None:
    """Refuse stores of other fields than a table has.

    Raises:
        OptionError: names the field.
    """
    unknown = [field for field in config.fields or () if field not in known]
    if unknown:
        raise OptionError(
            f"fields of {name}: the table has no field {unknown[0]!r}; its fields: {', '.join(known) or '–'}"
        )
