"""The choices that turn a raw log into a dataset."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal, get_args

from afm_dist.errors import OptionError
from afm_dist.runtime.seeds import check_seed
from data_prep.sources.source import RawField
from data_prep.split import ColumnSplit, LastFileSplit, RandomSplit, SplitRule
from data_prep.transforms import DEFAULT, TRANSFORMS, FieldRule

SplitBy = Literal["row", "last-file", "column"]


@dataclass(frozen=True, kw_only=True)
class ColumnRule:
    """What becomes of some raw columns, instead of what their kind suggests.

    Attributes:
        column: Name of a raw column, or a pattern (``I*``) for several.
        transform: Name of the transform; None: the column is left out.
        field: Name of the field; empty: that of the column.
        time_format: How a point in time is written.
    """

    column: str
    transform: str | None
    field: str = ""
    time_format: str = ""

    def __post_init__(self) -> None:
        if self.transform is None:
            return
        if self.transform not in TRANSFORMS:
            raise OptionError(
                f"column {self.column!r}: transform {self.transform!r} is unknown; "
                f"choose from {', '.join(TRANSFORMS)}"
            )
        if TRANSFORMS[self.transform].timed != bool(self.time_format):
            wants = "needs a format" if not self.time_format else "has no use for a format"
            raise OptionError(f"column {self.column!r}: transform {self.transform!r} {wants}")


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How raw rows become a dataset.

    Attributes:
        seed: Decides the split, and the order of the training rows.
        threshold: Tokens counted fewer times in the training split become id 0.
        split_by: ``row``: at random; ``last-file``: the last file is held out; ``column``: rows
            from some value of ``split_column`` on are.
        validation_share: Share of the rows (``last-file``: of that file) in ``validation``.
        test_share: The same for ``test``.
        split_column: Column that grows with time.
        validation_from: Its first value of ``validation``.
        test_from: Its first value of ``test``.
        columns: Rules for raw columns.
        rows_per_shard: Largest number of rows of a shard.
        max_bad_rows: Largest tolerated share of malformed rows.
        preset: Name under which the manifest records these choices.
    """

    seed: int = 0
    threshold: int = 2
    split_by: SplitBy = "row"
    validation_share: float = 0.1
    test_share: float = 0.1
    split_column: str | None = None
    validation_from: str | None = None
    test_from: str | None = None
    columns: tuple[ColumnRule, ...] = ()
    rows_per_shard: int = 100_000
    max_bad_rows: float = 0.001
    preset: str = "default"

    def __post_init__(self) -> None:
        if self.split_by not in get_args(SplitBy):
            raise OptionError(
                f"--split-by {self.split_by}: choose from {', '.join(get_args(SplitBy))} "
                f"(preset {self.preset}, [split], by)"
            )
        check_seed("--seed", self.seed)
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
        together = self.validation_share + self.test_share
        if self.split_by == "row" and together >= 1:
            raise OptionError(
                f"--validation-share {self.validation_share} and --test-share {self.test_share} leave "
                "nothing to train on; their sum must be below 1"
            )
        if self.split_by == "last-file" and abs(together - 1) > 1e-9:
            raise OptionError(
                f"--validation-share {self.validation_share} and --test-share {self.test_share} are shares "
                "of the last file here; their sum must be 1"
            )
        if (self.split_by == "column") != (self.split_column is not None):
            raise OptionError("--split-column: name the column together with --split-by column")
        if self.split_by != "column" and (self.validation_from, self.test_from) != (None, None):
            raise OptionError(
                "--validation-from, --test-from: these are values of a column; "
                "name it with --split-by column --split-column NAME"
            )
        if self.split_by == "column" and self.validation_from is None and self.test_from is None:
            raise OptionError(
                "--split-by column: say from which value on rows are held out, "
                "with --validation-from and --test-from"
            )

    def split(self, n_files: int) -> SplitRule:
        """The rule that assigns the rows of some files to splits.

        Raises:
            OptionError: there are too few files, or the bounds have no order.
        """
        by_chance = RandomSplit(
            seed=self.seed, validation_share=self.validation_share, test_share=self.test_share
        )
        if self.split_column is not None:
            by_column = ColumnSplit(
                column=self.split_column, validation_from=self.validation_from, test_from=self.test_from
            )
            by_column.check_bounds()
            return by_column
        if self.split_by == "row":
            return by_chance
        if n_files < 2:
            raise OptionError(
                "--split-by last-file: there is one file; name several with --input, the last held out"
            )
        return LastFileSplit(last_file=n_files - 1, held_out=by_chance)

    def rules(self, raw: Sequence[RawField]) -> tuple[FieldRule, ...]:
        """How each field is made, in the order of the raw columns.

        The column that decides the split becomes a field only where a rule or the user names it.

        Raises:
            OptionError: a rule does not fit the columns there are, or nothing is left.
        """
        names = [column.name for column in raw]
        for rule in self.columns:
            if not any(fnmatchcase(name, rule.column) for name in names):
                raise OptionError(
                    f"preset {self.preset}: no column {rule.column!r}; the log has: {', '.join(names)}"
                )
        made: list[FieldRule] = []
        for column in raw:
            matching = [rule for rule in self.columns if fnmatchcase(column.name, rule.column)]
            # What is held out has other values of it than were trained on.
            if column.name == self.split_column and not matching and not column.named:
                continue
            for rule in matching or [ColumnRule(column=column.name, transform=DEFAULT[column.kind])]:
                if rule.transform is None:
                    continue
                if TRANSFORMS[rule.transform].reads != column.kind:
                    raise OptionError(
                        f"preset {self.preset}: transform {rule.transform!r} cannot read column "
                        f"{column.name!r}, which is {column.kind}"
                    )
                made.append(
                    FieldRule(
                        name=rule.field or column.name,
                        column=column.name,
                        transform=rule.transform,
                        time_format=rule.time_format,
                    )
                )
        for name in (rule.name for rule in made):
            if sum(rule.name == name for rule in made) > 1:
                raise OptionError(f"preset {self.preset}: two fields are named {name!r}; rename one")
        if not made:
            raise OptionError(f"preset {self.preset}: no field is left; check what it drops")
        return tuple(made)
