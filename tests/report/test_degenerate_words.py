"""Sentences on layers that have more outputs than information."""

from __future__ import annotations

import pytest

from afm_dist.report.degenerate_words import SHOWN, degenerate_layers
from afm_dist.report.schema import Layer


def layer(name: str, width: int, needed: int, *, rank: int = 2, rows: int = 10_000) -> Layer:
    return {
        "name": name,
        "kind": "embedding" if name.startswith("embedding") else "linear",
        "method": "afm",
        "width": width,
        "rank": rank,
        "kept_energy": 1.0,
        "rank_needed": needed,
        "count": rows,
    }


@pytest.mark.parametrize(
    ("degenerate", "sentence"),
    [
        (
            layer("mlp.2", 400, 363, rank=64),
            "mlp.2: 37 of 400 outputs are constant or combinations of others (to 1e-8 of the variance); "
            "a rank of 363 or more loses nothing.",
        ),
        (
            layer("mlp.2", 400, 12, rank=64),
            "mlp.2: 388 of 400 outputs are constant or combinations of others (to 1e-8 of the variance); "
            "a rank of 12 or more loses nothing, its 64 are more than it needs.",
        ),
        (
            layer("mlp.2", 400, 99, rank=64, rows=100),
            "mlp.2: 301 of 400 outputs are constant or combinations of others (there were only 100 rows); "
            "a rank of 99 or more loses nothing.",
        ),
        (
            layer("mlp.2", 400, 0),
            "mlp.2: its 400 outputs never change; it is a constant, and rank 0 would do.",
        ),
        (
            layer("embedding[C9]", 16, 0),
            "field C9 has one token in all training rows, or the same embedding for all: its rows carry no "
            "information, rank 0 would do.",
        ),
        (
            layer("embedding[C9]", 16, 1),
            "field C9: a rank of 1 loses nothing, its 2 are more than it needs.",
        ),
        (
            layer("embedding[a[1]]", 16, 1, rank=3),
            "field a[1]: a rank of 1 loses nothing, its 3 are more than it needs.",
        ),
    ],
    ids=lambda value: value["name"] if isinstance(value, dict) else "",
)
def test_what_is_said_of_a_degenerate_layer(degenerate: Layer, sentence: str) -> None:
    assert degenerate_layers([layer("mlp.5", 30, 30), degenerate, layer("embedding[C1]", 16, 16)]) == [
        sentence
    ]


def test_nothing_is_said_of_tables_with_fewer_tokens_than_dimensions() -> None:
    assert degenerate_layers([layer("embedding[C9]", 16, 2), layer("embedding[C8]", 16, 7)]) == []


def test_nothing_is_said_of_reports_that_do_not_know() -> None:
    unknown = layer("mlp.2", 400, 3)
    del unknown["rank_needed"]

    assert degenerate_layers([unknown]) == []


@pytest.mark.parametrize("fields", [SHOWN, SHOWN + 1])
def test_a_few_are_all_shown(fields: int) -> None:
    sentences = degenerate_layers([layer(f"embedding[C{i}]", 16, 0) for i in range(fields)])

    assert [sentence.split()[1] for sentence in sentences] == [f"C{i}" for i in range(fields)]


def test_of_many_a_few_are_shown_and_the_rest_are_counted() -> None:
    layers = [layer(f"embedding[C{i}]", 16, 0) for i in range(1200 + SHOWN)]
    layers += [layer(f"embedding[D{i}]", 16, 1) for i in range(9)]

    sentences = degenerate_layers(layers)

    assert len(sentences) == 2 * (SHOWN + 1)
    assert sentences[SHOWN] == "And 1,200 more fields of the same kind."
    assert sentences[-1] == f"And {9 - SHOWN} more fields with more codes than they need."
