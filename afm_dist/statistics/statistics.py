"""What is known of the outputs of a model's modules when they are compressed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from afm_dist.errors import OptionError
from afm_dist.statistics.collected import BytesOf, Probe
from afm_dist.statistics.keys import module_name
from afm_dist.statistics.moments import Moments
from afm_dist.statistics.spectrum import Spectrum, eigendecompose


class Statistics(Mapping[str, Moments]):
    """Moments by name, and how much the logit depends on the outputs, as far as that was measured.

    Args:
        moments: From ``collect_moments``.
        sensitivity: E[ggᵀ] by the same names, from ``output_sensitivity``; None: not measured.
        counts: How often each id of a table occurs, by the names that its moments have, shape (V,), integers;
            None: those that the moments come with, as from ``moments_from_counts``.

    Attributes:
        probe: Runs the model on a batch that it was watched on; None: there was none, or the moments come
            from a file.
        bytes_of: Says whether an entry of a plan makes its module smaller; None: not known.
    """

    def __init__(
        self,
        moments: Mapping[str, Moments],
        sensitivity: Mapping[str, Tensor] | None = None,
        counts: Mapping[str, Tensor] | None = None,
    ) -> None:
        self._moments = moments
        self.probe: Probe | None = getattr(moments, "probe", None)
        self.bytes_of: BytesOf | None = getattr(moments, "bytes_of", None)
        self._sensitivity = sensitivity
        self._counts: Mapping[str, Tensor] = getattr(moments, "counts", {}) if counts is None else counts

    @classmethod
    def of(cls, known: Mapping[str, Moments], sensitivity: Mapping[str, Tensor] | None = None) -> Statistics:
        """Take statistics as they are, or make some of moments; with a sensitivity where one is given."""
        if isinstance(known, Statistics) and sensitivity is None:
            return known
        return cls(known, sensitivity, known._counts if isinstance(known, Statistics) else None)

    def with_counts(self, counts: Mapping[str, Tensor]) -> Statistics:
        """Give the same, and how often ids occur.

        Args:
            counts: By the names that the rows' moments have, shape (V,) each, integers.
        """
        return Statistics(self._moments, self._sensitivity, {**self._counts, **counts})

    def keys_of(self, module: str) -> list[str]:
        """List the names of the statistics of a module: its own, or those of its fields."""
        return [key for key in self._moments if module_name(key) == module]

    def replacing(
        self,
        module: str,
        moments: Mapping[str, Moments],
        sensitivity: Mapping[str, Tensor],
        names: Mapping[str, str] | None = None,
    ) -> Statistics:
        """Give the same with other statistics of one module.

        Args:
            module: What was known of it is left out.
            moments: In its place, by any names.
            sensitivity: Likewise.
            names: By the names under which rows of the same ids were known those under which they are now,
                where these are others.
        """
        return Statistics(
            {key: own for key, own in self._moments.items() if module_name(key) != module} | dict(moments),
            {key: own for key, own in (self._sensitivity or {}).items() if module_name(key) != module}
            | dict(sensitivity),
            {(names or {}).get(key, key): own for key, own in self._counts.items()},
        )

    def __getitem__(self, key: str) -> Moments:
        return self._moments[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._moments)

    def __len__(self) -> int:
        return len(self._moments)

    def moments(self, key: str, width: int) -> Moments:
        """Give some moments, which must be there and of this width.

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

    def observed(self, key: str, width: int) -> Moments:
        """Give the same, which must be of rows.

        Raises:
            OptionError: as ``moments``, or there were no rows.
        """
        found = self.moments(key, width)
        if found.count == 0:
            raise OptionError(
                f"the moments of {key} hold no rows: the module was never called. A module whose weights the "
                "model only reads cannot be compressed by what it puts out; leave it out of the plan"
            )
        return found

    def counts(self, key: str, ids: int) -> Tensor | None:
        """Give how often each id of a table, or of one of its fields, occurs, shape (V,); None: not known.

        What is known of a field in one table holds for its other tables, too.

        Args:
            key: Of the rows' moments.
            ids: V.

        Raises:
            OptionError: there are counts of another number of ids, or a negative one.
        """
        field = key.removeprefix(module_name(key))
        same = (own for other, own in self._counts.items() if other.removeprefix(module_name(other)) == field)
        found = self._counts.get(key, next(same, None) if field else None)
        if found is None:
            return None
        if found.shape != (ids,) or (ids and int(found.min()) < 0):
            raise OptionError(
                f"the counts of {key} have shape {tuple(found.shape)}, and {ids} that are not negative are "
                "needed: they are of another table; take those of the data that the model was trained on"
            )
        return found

    def spectrum(self, key: str, width: int) -> Spectrum:
        """Give the principal components of some moments.

        Raises:
            OptionError: as in ``observed``.
        """
        return eigendecompose(self.observed(key, width))

    def measured_sensitivity(self, key: str, width: int | None = None) -> Tensor | None:
        """Give E[ggᵀ] of some outputs, shape (M, M), or None where it was not measured.

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
        """Give E[ggᵀ] of some outputs, shape (M, M), which must be there, finite and of this width.

        Raises:
            OptionError: it is not.
        """
        measure = "measure it with output_sensitivity(model, batches, names, forward=…)"
        if self._sensitivity is None or key not in self._sensitivity:
            raise OptionError(
                f"compressing {key} needs the sensitivity of the logit to its outputs: {measure} and give it "
                "as compress_(model, plan, Statistics(moments, sensitivity))"
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
