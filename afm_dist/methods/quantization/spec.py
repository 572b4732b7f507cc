"""How the rows of one field are stored, as a word of a plan: ``int8``, ``vq6``, ``rq2x8:1000+vq4``, ….

Shape legend: S slots of a field, or of a range of them, K numbers of a slot, C codes of a slot.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from afm_dist.errors import OptionError
from afm_dist.methods.quantization.packing import packed_bytes

Kind = Literal["float32", "float16", "int", "vq", "rq", "pq"]

INT_BITS = (2, 4, 8)
MOST_BITS = 12
MOST_PARTS = 16
FLOAT_BYTES = 4
# Of a level, a scale: float16 in files.
HALF = 2

_WAY = re.compile(
    r"(?P<plain>float32|float16|mean)"
    r"|int(?P<int>[1-9][0-9]?)(?P<row>-row)?"
    r"|vq(?P<vq>[1-9][0-9]?)"
    r"|(?P<many>rq|pq)(?P<parts>[1-9][0-9]?)x(?P<bits>[1-9][0-9]?)"
)
_NUMBER = re.compile(r"[1-9][0-9]{0,17}")
GRAMMAR = (
    "float32, float16, int8, int4 or int2 (with -row: a scale a row), vqB, rqMxB or pqMxB with B bits a code "
    f"(1 to {MOST_BITS}) and M codes a row (2 to {MOST_PARTS}), or mean; WAY:N+WAY stores the first N ids in "
    "another way than the others, and with @N behind only the first N ids have a row of their own"
)


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way to store rows.

    Attributes:
        kind: ``float32``, ``float16``; ``int``: whole numbers on a grid; ``vq``: one codebook, of no bits the
            mean; ``rq``: codes of several codebooks, added up; ``pq``: a codebook for some coordinates each.
        bits: Of a code.
        parts: Codes of a row, of ``rq`` and ``pq``.
        by_row: Whether each row has a scale of its own, of ``int``.
    """

    kind: Kind
    bits: int = 0
    parts: int = 1
    by_row: bool = False

    @classmethod
    def parse(cls, word: str) -> Way | None:
        """Read the word for a way; None: it is none."""
        found = _WAY.fullmatch(word)
        if found is None:
            return None
        if found["plain"]:
            return MEAN if found["plain"] == "mean" else cls(kind=found["plain"])  # type: ignore[arg-type]
        parts = int(found["parts"] or 1)
        bits = int(found["int"] or found["vq"] or found["bits"])
        known: Collection[int] = INT_BITS if found["int"] else range(1, MOST_BITS + 1)
        if bits not in known or (found["many"] and not 2 <= parts <= MOST_PARTS):
            return None
        kind: Kind = "int" if found["int"] else "vq" if found["vq"] else found["many"]  # type: ignore[assignment]
        return cls(kind=kind, bits=bits, parts=parts, by_row=found["row"] is not None)

    @property
    def word(self) -> str:
        """Give the word that ``parse`` reads."""
        if self == MEAN:
            return "mean"
        if self.kind == "int":
            return f"int{self.bits}{'-row' if self.by_row else ''}"
        if self.kind == "vq":
            return f"vq{self.bits}"
        return f"{self.kind}{self.parts}x{self.bits}" if self.kind in ("rq", "pq") else self.kind

    def layout(self, slots: int, width: int) -> Layout:
        """Give what is stored, without what there is no use for.

        Fewer rows than codewords have a codeword each, and shorter codes.

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


MEAN = Way(kind="vq")
FLOAT = Way(kind="float32")


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What a plan asks for of a field.

    Attributes:
        ways: Of ranges of ids, from the first on.
        ends: Where each range but the last ends.
        own: How many ids have a row of their own, those behind share one; None: all.
    """

    ways: tuple[Way, ...]
    ends: tuple[int, ...] = ()
    own: int | None = None

    @classmethod
    def parse(cls, word: object) -> Spec:
        """Read the word of a plan.

        Raises:
            OptionError: says what there is.
        """
        wrong = OptionError(f"{word!r} is no way to store rows; choose from {GRAMMAR}")
        if not isinstance(word, str):
            raise wrong
        text, at, own = word.partition("@")
        ways: list[Way] = []
        ends: list[int] = []
        *tiers, last = text.split("+")
        for tier in tiers:
            name, _, end = tier.partition(":")
            way = Way.parse(name)
            if way is None or not _NUMBER.fullmatch(end) or (ends and int(end) <= ends[-1]):
                raise wrong
            ways.append(way)
            ends.append(int(end))
        way = Way.parse(last)
        if way is None or (at and not _NUMBER.fullmatch(own)):
            raise wrong
        return cls(ways=(*ways, way), ends=tuple(ends), own=int(own) if at else None)

    @property
    def word(self) -> str:
        """Give the word that ``parse`` reads."""
        *tiers, last = self.ways
        text = "".join(f"{way.word}:{end}+" for way, end in zip(tiers, self.ends, strict=True)) + last.word
        return text if self.own is None else f"{text}@{self.own}"

    def slots(self, ids: int) -> int:
        """Count the rows that are stored for so many ids."""
        return ids if self.own is None else min(self.own + 1, ids)

    def layouts(self, ids: int, width: int) -> tuple[Layout, ...]:
        """Give what is stored of each range of ids that is not empty.

        Args:
            ids: Of the field.
            width: K.

        Raises:
            OptionError: more parts than coordinates.
        """
        slots = self.slots(ids)
        borders = [0, *(min(end, slots) for end in self.ends), slots]
        return tuple(
            way.layout(stop - start, width)
            for way, start, stop in zip(self.ways, borders, borders[1:], strict=False)
            if stop > start
        )

    def effective(self, ids: int, width: int) -> Spec:
        """Give this, or the rows as they are where this saves nothing.

        Args:
            ids: Of the field.
            width: K.
        """
        saves = sum(layout.bytes for layout in self.layouts(ids, width)) < ids * width * FLOAT_BYTES
        return self if saves else Spec(ways=(FLOAT,))


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What is stored of some rows of a field.

    Attributes:
        kind: As in ``Way``.
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
        """Name what rows have in common that are looked up together."""
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
        """Count the rows of K levels: codewords; of a grid its centre, and the common step if it has one."""
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
        """Count the bytes of all that is stored of the rows."""
        if not self.coded:
            return self.slots * self.width * (FLOAT_BYTES if self.kind == "float32" else HALF)
        scales = self.slots if self.by_row else 0
        # Which codebook a coordinate is of takes a byte.
        owners = self.width if self.kind == "pq" else 0
        return self.code_bytes + HALF * (self.level_rows * self.width + scales) + owners
