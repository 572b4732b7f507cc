"""What becomes of one module, as a value: small, frozen, versioned, and readable in a pull request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Self

from afm_dist.errors import DataError

# Fields of one size that are named, so that a line stays one.
NAMED_FIELDS = 4


@dataclass(frozen=True, kw_only=True)
class MethodConfig:
    """How a method is applied to a module. Each method derives its own, in its folder.

    A config is built from plain values, and checks them itself (``OptionError`` from ``__post_init__``).

    Attributes:
        tag: What plans call the method; no two configs have one tag.
        version: Of the fields; a reader refuses versions it does not know.
    """

    tag: ClassVar[str]
    version: ClassVar[int] = 1

    @property
    def label(self) -> str:
        """Name the method in reports and tables; the tag, unless a config tells its variants apart."""
        return self.tag

    @property
    def size(self) -> int | Mapping[str, int] | str:
        """Say how much is kept of a module, for results: a rank, one for each field, or words."""
        return self.in_words

    @property
    def in_words(self) -> str:
        """Say what becomes of a module, behind its name: ``to 64``."""
        return f"by {self.label}"

    @property
    def neighbours(self) -> Sequence[str]:
        """Name the other modules of the model that are changed, too."""
        return ()

    def details(self) -> dict[str, str]:
        """Say how the method is applied: the value of each column of a table, by the column's title."""
        return {}

    def structure(self) -> dict[str, Any] | None:
        """Give what decides how fast the module is, as plain values: widths, not numbers or their origin.

        None where the model in memory is as fast as without.
        """
        return {"method": self.tag, **self.to_json()}

    def to_json(self) -> dict[str, Any]:
        """Give the fields as plain values, without those that are None."""
        return {key: value for key, value in asdict(self).items() if value is not None}

    @classmethod
    def from_json(cls, value: Mapping[str, Any], *, source: str = "plan") -> Self:
        """Read the fields back.

        Raises:
            DataError: names the field that is unknown, missing or out of range.
        """
        if not isinstance(value, Mapping):
            raise DataError(f"{source}: the config of method {cls.tag!r} is no object")
        unknown = sorted(set(value) - {item.name for item in fields(cls)})
        if unknown:
            raise DataError(f"{source}: method {cls.tag!r} has no field {unknown[0]!r}")
        try:
            return cls(**value)
        except (TypeError, ValueError) as error:
            raise DataError(f"{source}: config of method {cls.tag!r} not understood ({error})") from error


def describe_size(rank: int | Mapping[str, int] | str) -> str:
    """Say ``to 64``, or ``by field (0 for depth; 2 for 11 fields)``."""
    if isinstance(rank, str):
        return rank
    if isinstance(rank, int):
        return f"to {rank}"
    fields: dict[int, list[str]] = {}
    for field, own in rank.items():
        fields.setdefault(own, []).append(field)
    listed = (
        f"{own} for {', '.join(names) if len(names) <= NAMED_FIELDS else f'{len(names)} fields'}"
        for own, names in sorted(fields.items())
    )
    return f"by field ({'; '.join(listed)})"
