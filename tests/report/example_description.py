"""A made-up description of a dataset of Criteo's shape. EVERY NUMBER IS INVENTED; none was measured."""

from __future__ import annotations

from afm_dist.dataset.description import (
    BestScore,
    CategoricalField,
    Description,
    NumericField,
    RawFile,
    Split,
    ThresholdEffect,
    Token,
)


def categorical_field(number: int) -> CategoricalField:
    coverage = 1 - 0.02 * (number % 7)
    return CategoricalField(
        name=f"C{number}",
        column="hour" if number == 5 else f"C{number}",
        transform="weekday(%y%m%d%H)" if number == 5 else "token",
        cardinality=10 ** (1 + number % 7) + number,
        coverage=coverage,
        heads=tuple(min(coverage, share) for share in (0.2, 0.4, 0.6, 0.8, 0.95)),
        ids_for_90_percent=None if coverage < 0.9 else 9 * 10 ** (number % 7),
        missing_share=0.0 if number % 2 else 0.4413,
        unknown_share={"validation": 0.0004 * number, "test": 0.00041 * number},
        top=tuple(Token(token=f"{number:02x}{place:06x}", share=0.2 / (1 + place)) for place in range(5)),
    )


def example_description() -> Description:
    return Description(
        name="criteo",
        label="label",
        preset="criteo-x4",
        seed=3,
        threshold=10,
        source="criteo",
        inputs=tuple(
            RawFile(name=f"day_{day}.gz", bytes=16_000_000_000 + day, sha256=f"{day:064x}")
            for day in range(24)
        ),
        rows_read=45_840_617,
        rows_rejected=617,
        splits=(
            Split(name="train", rows=36_672_000, positives=9_397_000, shards=367, bytes=5_700_000_000),
            Split(name="validation", rows=4_584_000, positives=1_175_000, shards=46, bytes=700_000_000),
            Split(name="test", rows=4_584_000, positives=None, shards=46, bytes=700_000_000),
        ),
        categorical=tuple(categorical_field(number) for number in range(1, 27)),
        numeric=tuple(
            NumericField(
                name=f"I{number}",
                column=f"I{number}",
                transform="log",
                mean=0.1234567 * number,
                deviation=1.5,
                missing_share=0.0321,
            )
            for number in range(1, 14)
        ),
        thresholds=tuple(
            ThresholdEffect(
                threshold=threshold,
                ids=round(3e7 / threshold),
                coverage=1 - threshold / 1000,
                least_coverage=1 - threshold / 500,
                least_covered="C3",
            )
            for threshold in (10, 20, 50, 100)
        ),
        best=BestScore(auc=0.81234, log_loss=0.43456, split="test"),
    )
