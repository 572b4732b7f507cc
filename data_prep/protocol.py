"""The choices that turn a raw log into a dataset."""

from __future__ import annotations

from dataclasses import dataclass

from afm_dist.errors import OptionError
from data_prep.split import SplitRule


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How raw rows become a dataset.

    Attributes:
        seed: Decides the split.
        threshold: Tokens counted fewer times in the training split become id 0.
        validation_share: Share of the rows in ``validation``.
        test_share: Share of the rows in ``test``.
        rows_per_shard: Largest number of rows of a shard.
        max_bad_rows: Largest tolerated share of malformed rows.
        preset: Name under which the manifest records these choices.
    """

    seed: int = 0
    threshold: int = 2
    validation_share: float = 0.1
    test_share: float = 0.1
    rows_per_shard: int = 100_000
    max_bad_rows: float = 0.001
    preset: str = "default"

    def __post_init__(self) -> None:
        if self.threshold < 1:
            raise OptionError(f"--threshold {self.threshold}: must be 1 (keep every token) or more")
        if self.rows_per_shard < 1:
            raise OptionError(f"--rows-per-shard {self.rows_per_shard}: must be at least 1")
        for option, share in (
            ("--validation-share", self.validation_share),
            ("--test-share", self.test_share),
            ("--max-bad-rows", self.max_bad_rows),
        ):
            if not 0 <= share <= 1:
                raise OptionError(f"{option} {share}: must be a share between 0 and 1")
        if self.validation_share + self.test_share >= 1:
            raise OptionError(
                f"--validation-share {self.validation_share} and --test-share {self.test_share} leave "
                "nothing to train on; their sum must be below 1"
            )

    @property
    def split(self) -> SplitRule:
        """The rule that assigns rows to splits."""
        return SplitRule(seed=self.seed, validation_share=self.validation_share, test_share=self.test_share)
