"""Moments with what the pass that took them knows of their model besides."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from afm_dist.statistics.moments import Moments

# Runs a model on a batch of the data.
Probe = Callable[[nn.Module], Any]


class CollectedMoments(dict[str, Moments]):
    """Moments by name, as ``collect_moments`` gives them.

    Attributes:
        probe: Runs the model on a batch that it was watched on; None: there was none, or they come from a
            file.
    """

    def __init__(self, moments: Mapping[str, Moments] | None = None, *, probe: Probe | None = None) -> None:
        super().__init__(moments or {})
        self.probe = probe

    def __or__(self, other: Mapping[str, Moments]) -> CollectedMoments:  # type: ignore[override]
        """The moments of both."""
        return CollectedMoments({**self, **other}, probe=self.probe or getattr(other, "probe", None))
