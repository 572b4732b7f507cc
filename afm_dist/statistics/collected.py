"""Moments with what the pass that took them knows of their model besides."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from afm_dist.statistics.moments import Moments

if TYPE_CHECKING:
    from afm_dist.compression.plan import PlanEntry

# Runs a model on a batch of the data.
Probe = Callable[[nn.Module], Any]
# Bytes of what an entry changes, before and after; None: not known.
BytesOf = Callable[["PlanEntry"], tuple[int, int] | None]


class CollectedMoments(dict[str, Moments]):
    """Moments by name, as ``collect_moments`` gives them.

    Attributes:
        probe: Runs the model on a batch that it was watched on; None: there was none, or they come from a
            file.
        bytes_of: Says whether an entry of a plan makes its module smaller; None: not known, as of moments
            from a file.
        counts: How often each id occurs, of moments that were made of that, by their names.
    """

    def __init__(
        self,
        moments: Mapping[str, Moments] | None = None,
        *,
        probe: Probe | None = None,
        bytes_of: BytesOf | None = None,
        counts: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__(moments or {})
        self.probe = probe
        self.bytes_of = bytes_of
        self.counts = dict(counts or {})

    def __or__(self, other: Mapping[str, Moments]) -> CollectedMoments:  # type: ignore[override]
        """Combine the moments of both."""
        if not isinstance(other, CollectedMoments):
            return CollectedMoments(
                {**self, **other}, probe=self.probe, bytes_of=self.bytes_of, counts=self.counts
            )
        both = [known for known in (self.bytes_of, other.bytes_of) if known is not None]

        def bytes_of(entry: PlanEntry) -> tuple[int, int] | None:
            return next((found for known in both if (found := known(entry)) is not None), None)

        return CollectedMoments(
            {**self, **other},
            probe=self.probe or other.probe,
            bytes_of=bytes_of,
            counts={**self.counts, **other.counts},
        )
