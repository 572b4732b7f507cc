"""What a column that decides the split held, over all rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from data_prep.sources.forms import Example
from data_prep.split_values import Values


@dataclass(frozen=True, order=True)
class Mark:
    """A value with its place in the order of the column: ``high``, then ``low``."""

    high: float
    low: int
    text: str
    place: str

    def __str__(self) -> str:
        return f"{self.text!r} ({self.place})"


@dataclass(frozen=True, kw_only=True)
class ColumnRange:
    """The ends of a column, and its time zones.

    Attributes:
        least: The first of the least values; None: there was none.
        most: The first of the greatest.
        zones: Of times that are compared as clocks show them: by zone, the first example.
    """

    least: Mark | None = None
    most: Mark | None = None
    zones: Mapping[str, Example] = field(default_factory=dict)

    @classmethod
    def of(
        cls, values: Values, known: np.ndarray, codes: np.ndarray, lines: np.ndarray, *, zones: bool
    ) -> ColumnRange:
        """What B rows hold; their places are lines.

        Args:
            values: V distinct values.
            known: (V) which of them count.
            codes: (B) which of them each row holds.
            lines: (B) the line of each row.
            zones: Whether to look for time zones.
        """
        counted = np.flatnonzero(known)
        if not len(counted):
            return cls()
        ascending = counted[np.lexsort((values.low[counted], values.high[counted]))]

        def line(index: int) -> str:
            return str(lines[int(np.argmax(codes == index))])

        def mark(index: int) -> Mark:
            high = values.high[index].item()
            return Mark(high, int(values.low[index]), values.text(index) or "", line(index))

        found: dict[str, Example] = {}
        if zones:
            _, firsts = np.unique(np.where(values.zoned, values.offsets, -1)[counted], return_index=True)
            for index in sorted(int(counted[first]) for first in firsts):
                found[values.zone_of(index)] = Example(line(index), values.text(index) or "")
        return cls(least=mark(int(ascending[0])), most=mark(int(ascending[-1])), zones=found)

    @classmethod
    def merged(cls, several: Iterable[ColumnRange]) -> ColumnRange:
        """Of all rows together."""
        known = [seen for seen in several if seen.least is not None and seen.most is not None]
        zones: dict[str, Example] = {}
        for seen in known:
            for zone, example in seen.zones.items():
                zones.setdefault(zone, example)
        return cls(
            least=min((seen.least for seen in known if seen.least), default=None),
            most=max((seen.most for seen in known if seen.most), default=None),
            zones=zones,
        )

    def at(self, path: str) -> ColumnRange:
        """The same with the file before the lines."""
        return ColumnRange(
            least=self.least and Mark(**{**vars(self.least), "place": f"{path}:{self.least.place}"}),
            most=self.most and Mark(**{**vars(self.most), "place": f"{path}:{self.most.place}"}),
            zones={zone: Example(f"{path}:{each.place}", each.text) for zone, each in self.zones.items()},
        )
