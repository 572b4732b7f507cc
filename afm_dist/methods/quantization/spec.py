"""How the rows of one field are stored, as a word of a plan: ``int8``, ``vq6``, ``rq2x8``, ``pq4x8@5000``.

Shape legend: S slots of a field, K numbers of a slot, C codes of a slot.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from afm_dist.errors import OptionError
from afm_dist.methods.quantization.packing import packed_bytes

Kind = Literal["float32", "float16", "int", "vq", "rq", "pq"]

INT_BITS = (2, 4, 8)
MOST_BITS = 12
MOST_PARTS = 16
# Of a level, a scale: float16 in files.
HALF = 2
# All ids of a field share one row, its mean.
MEAN = "mean"

_WORD = re.compile(
    r"(?P<plain>float32|float16)"
    r"|int(?P<int>[1-9][0-9]?)(?P<row>-row)?"
    r"|vq(?P<vq>[1-9][0-9]?)"
    r"|(?P<many>rq|pq)(?P<parts>[1-9][0-9]?)x(?P<bits>[1-9][0-9]?)"
)
GRAMMAR = (
    "float32, float16, int8, int4 or int2 (with -row: a scale a row), vqB, rqMxB or pqMxB with B bits a code "
    f"(1 to {MOST_BITS}) and M codes a row (2 to {MOST_PARTS}), or mean; with @N only the first N ids of a "
    "field have a row of their own"
)


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What a plan asks for of a field.

    Attributes:
        kind: ``float32``, ``float16``; ``int``: whole numbers on a grid; ``vq``: one codebook; ``rq``: codes
            of several codebooks, added up; ``pq``: a codebook for some coordinates each.
        bits: Of a code.
        parts: Codes of a row, of ``rq`` and ``pq``.
        by_row: Whether each row has a scale of its own, of ``int``.
        own: How many ids have a row of their own, those behind share one; None: all.
    """

    kind: Kind
    bits: int = 0
    parts: int = 1
    by_row: bool = False
    own: int | None = None

    @classmethod
    def parse(cls, word: object) -> Spec:
        """Read the word of a plan.

        Raises:
            OptionError: says what there is.
        """
        text, at, own = word.partition("@") if isinstance(word, str) else ("", "", "")
        if text == MEAN and not at:
            return cls(kind="vq", bits=1, own=0)
        found = _WORD.fullmatch(text)
        if found is None or (at and not re.fullmatch(r"[1-9][0-9]{0,17}", own)):
            raise OptionError(f"{word!r} is no way to store rows; choose from {GRAMMAR}")
        kept = int(own) if at else None
        if found["plain"]:
            return cls(kind=found["plain"], own=kept)  # type: ignore[arg-type]
        if found["int"]:
            bits = _within(word, int(found["int"]), INT_BITS)
            return cls(kind="int", bits=bits, by_row=found["row"] is not None, own=kept)
        if found["vq"]:
            return cls(kind="vq", bits=_within(word, int(found["vq"]), range(1, MOST_BITS + 1)), own=kept)
        parts = _within(word, int(found["parts"]), range(2, MOST_PARTS + 1))
        bits = _within(word, int(found["bits"]), range(1, MOST_BITS + 1))
        return cls(kind=found["many"], bits=bits, parts=parts, own=kept)  # type: ignore[arg-type]

    @property
    def word(self) -> str:
        """Give the word that ``parse`` reads."""
        if self.own == 0:
            return MEAN
        shared = "" if self.own is None else f"@{self.own}"
        if self.kind == "int":
            return f"int{self.bits}{'-row' if self.by_row else ''}{shared}"
        if self.kind == "vq":
            return f"vq{self.bits}{shared}"
        many = f"{self.parts}x{self.bits}" if self.kind in ("rq", "pq") else ""
        return f"{self.kind}{many}{shared}"

    def slots(self, ids: int) -> int:
        """Count the rows that are stored for so many ids."""
        return ids if self.own is None else min(self.own + 1, ids)

    def layout(self, slots: int, width: int) -> Layout:
        """Give what is stored of a field, without what it has no use for.

        A field of fewer rows than codewords has a codeword for each, and shorter codes.

        Args:
            slots: S.
            width: K.

        Raises:
            OptionError: more parts than coordinates.
        """
        if self.kind == "pq" and self.parts > width:
            raise OptionError(
                f"{self.word!r}: {self.parts} parts of rows of {width} numbers; at most {width} are possible"
            )
        bits = self.bits
        if self.kind in ("vq", "rq", "pq"):
            bits = min(bits, max(slots - 1, 0).bit_length())
        return Layout(
            kind=self.kind, bits=bits, parts=self.parts, by_row=self.by_row, slots=slots, width=width
        )


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What is stored of a field.

    Attributes:
        kind: As in ``Spec``.
        bits: Of a code.
        parts: Codes of a row, of ``rq`` and ``pq``.
        by_row: Whether each row has a scale of its own.
        slots: S.
        width: K.
    """

    kind: Kind
    bits: int
    parts: int
    by_row: bool
    slots: int
    width: int

    @property
    def group(self) -> str:
        """Name what fields have in common that are looked up together."""
        if self.kind == "int":
            return f"int{self.bits}{'-row' if self.by_row else ''}"
        if self.kind in ("rq", "pq"):
            return f"{self.kind}{self.parts}x{self.bits}"
        return f"vq{self.bits}" if self.kind == "vq" else self.kind

    @property
    def coded(self) -> bool:
        """Whether rows are codes."""
        return self.kind not in ("float32", "float16")

    @property
    def codewords(self) -> int:
        """Count the codewords of a codebook."""
        return min(1 << self.bits, self.slots)

    @property
    def codes(self) -> int:
        """C."""
        return {"int": self.width, "rq": self.parts, "pq": self.parts}.get(self.kind, 1)

    @property
    def streams(self) -> tuple[int, int]:
        """Give how many sequences of codes are packed, and the codes of each.

        The codes of a row on a grid lie side by side, those of several codebooks each in a sequence.
        """
        return (1, self.slots * self.width) if self.kind == "int" else (self.codes, self.slots)

    @property
    def level_rows(self) -> int:
        """Count the rows of K levels: codewords; of a grid its centre, and the field's step if it has one."""
        if self.kind == "int":
            return 1 if self.by_row else 2
        return self.codewords * (self.parts if self.kind == "rq" else 1)

    @property
    def code_bytes(self) -> int:
        """Count the bytes of packed codes."""
        count, length = self.streams
        return count * packed_bytes(length, self.bits)

    @property
    def bytes(self) -> int:
        """Count the bytes of all that is stored of the field."""
        if not self.coded:
            return self.slots * self.width * (4 if self.kind == "float32" else HALF)
        scales = self.slots if self.by_row else 0
        # Which codebook a coordinate is of takes a byte.
        owners = self.width if self.kind == "pq" else 0
        return self.code_bytes + HALF * (self.level_rows * self.width + scales) + owners


def _within(word: object, value: int, known: range | tuple[int, ...]) -> int:
    if value not in known:
        raise OptionError(f"{word!r} is no way to store rows; choose from {GRAMMAR}")
    return value
