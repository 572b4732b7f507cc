"""What is known of the outputs of a model's modules when their factors are made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from afm_dist.compression.factorize import Spectrum, eigendecompose
from afm_dist.errors import OptionError
from afm_dist.statistics.moments import Moments


class OutputStatistics(Mapping[str, Moments]):
    """Moments by name, and how much the logit depends on the outputs, as far as that was measured.

    Args:
        moments: From ``collect_moments``.
        sensitivity: E[ggᵀ] by the same names, from ``output_sensitivity``; None: not measured.
    """

    def __init__(
        self, moments: Mapping[str, Moments], sensitivity: Mapping[str, Tensor] | None = None
    ) -> None:
        self._moments = moments
        self._sensitivity = sensitivity

    def __getitem__(self, key: str) -> Moments:
        return self._moments[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._moments)

    def __len__(self) -> int:
        return len(self._moments)

    def moments(self, key: str, width: int) -> Moments:
        """Some moments, which must be there and of this width.

        Raises:
            OptionError: they are not.
        """
        if key not in self._moments:
            raise OptionError(f"no moments of {key}; collect them with collect_moments(model, data, …) first")
        found = self._moments[key]
        if found.width != width:
            raise OptionError(
                f"the moments of {key} have width {found.width}, the module has {width} outputs: they are "
                "of another model; collect them with collect_moments(model, data, …) again"
            )
        return found

    def spectrum(self, key: str, width: int) -> Spectrum:
        """Principal components of some moments.

        Raises:
            OptionError: as in ``moments``.
        """
        return eigendecompose(self.moments(key, width))

    def felt(self, key: str, width: int | None = None) -> Tensor | None:
        """E[ggᵀ] of some outputs, shape (M, M), or None where it was not measured.

        Args:
            key: Of the outputs.
            width: M, which it must have; None: any.

        Raises:
            OptionError: it is of another width, or not finite.
        """
        if self._sensitivity is None or key not in self._sensitivity:
            return None
        return self.sensitivity(key, len(self._sensitivity[key]) if width is None else width)

    def sensitivity(self, key: str, width: int) -> Tensor:
        """E[ggᵀ] of some outputs, shape (M, M), which must be there, finite and of this width.

        Raises:
            OptionError: it is not.
        """
        measure = "measure it with output_sensitivity(model, batches, names, forward=…)"
        if self._sensitivity is None or key not in self._sensitivity:
            raise OptionError(
                f"method 'weighted' of {key} needs the sensitivity of the logit to its outputs: {measure} "
                "and give it as compress_(model, plan, moments, sensitivity)"
            )
        found = self._sensitivity[key]
        if found.shape != (width, width):
            raise OptionError(
                f"the sensitivity of {key} has shape {tuple(found.shape)}, the module has {width} outputs: "
                f"it is of another model; {measure} again"
            )
        if not torch.isfinite(found).all():
            raise OptionError(
                f"the sensitivity of {key} holds NaN or infinity: look for broken values in the batches or "
                "for a diverged model"
            )
        return found
