"""A dataset's description as JSON, for reports that are passed around: figures, no tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from afm_dist import storage
from afm_dist.dataset.description import (
    BestScore,
    CategoricalField,
    Description,
    InputFile,
    NumericField,
    Split,
    ThresholdEffect,
)
from afm_dist.errors import DataError

FORMAT_VERSION = 1


def to_json(description: Description) -> dict[str, Any]:
    """As plain values, without the most frequent tokens: they are what the log holds, not how much."""
    nameless = tuple(replace(field, top=()) for field in description.categorical)
    content = storage.plain(asdict(replace(description, categorical=nameless)))
    return {"format_version": FORMAT_VERSION, **content}


def from_json(content: Mapping[str, Any], *, source: str) -> Description | None:
    """The description again; None for one of another version, without which a report still says its own.

    Args:
        content: What ``to_json`` gave.
        source: Where it was found, for messages.

    Raises:
        DataError: something is missing, or there is something unknown.
    """
    if content.get("format_version") != FORMAT_VERSION:
        return None
    try:
        best = content["best"]
        return Description(
            **{
                **{key: value for key, value in content.items() if key != "format_version"},
                "inputs": tuple(InputFile(**each) for each in content["inputs"]),
                "splits": tuple(Split(**each) for each in content["splits"]),
                "categorical": tuple(
                    CategoricalField(**{**each, "heads": tuple(each["heads"]), "top": ()})
                    for each in content["categorical"]
                ),
                "numeric": tuple(NumericField(**each) for each in content["numeric"]),
                "thresholds": tuple(ThresholdEffect(**each) for each in content["thresholds"]),
                "best": None if best is None else BestScore(**best),
            }
        )
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{source}: the description of the data is damaged ({error})") from error
