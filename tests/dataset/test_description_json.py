"""A description survives a report, but for the tokens."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from afm_dist.dataset.description import Token
from afm_dist.dataset.description_json import from_json, to_json
from afm_dist.errors import DataError
from tests.report.example_description import example_description


def test_everything_but_the_tokens_is_read_back() -> None:
    example = example_description()
    secret = replace(example.categorical[0], top=(Token(token="a secret", share=0.1),))
    example = replace(example, categorical=(secret, *example.categorical[1:]))

    content = json.loads(json.dumps(to_json(example)))

    fields = tuple(replace(field, top=()) for field in example.categorical)
    assert from_json(content, source="report") == replace(example, categorical=fields)
    assert "a secret" not in json.dumps(content)


def test_a_damaged_description_names_where_it_was_found() -> None:
    content = to_json(example_description())
    content["splits"][0]["surprise"] = 1

    with pytest.raises(DataError, match=r"somewhere\.json: .*surprise"):
        from_json(content, source="somewhere.json")


def test_a_description_of_another_version_is_left_out() -> None:
    content = {**to_json(example_description()), "format_version": 2, "surprise": 1}

    assert from_json(content, source="report") is None
