from __future__ import annotations

from pathlib import Path

import pytest

from afm_dist.errors import OptionError
from data_prep import presets
from data_prep.protocol import ColumnRule, Protocol
from data_prep.sources.avazu import AvazuSource
from data_prep.sources.criteo import CriteoSource
from data_prep.sources.text_log import TextLog

LOGS: dict[str, type[TextLog]] = {"criteo": CriteoSource, "avazu": AvazuSource}


def _fields(name: str) -> dict[str, tuple[str, str]]:
    preset = presets.load(name)
    assert preset.source is not None
    raw = [text_field.field for text_field in LOGS[preset.source].layout]
    return {rule.name: (rule.kind, rule.transform) for rule in Protocol(**preset.options).rules(raw)}


def test_the_presets_users_know_are_there() -> None:
    assert presets.names() == [
        "afm-avazu",
        "afm-criteo",
        "avazu-x4",
        "criteo-1tb",
        "criteo-x1",
        "criteo-x4",
        "default",
    ]


@pytest.mark.parametrize("name", presets.names())
def test_every_preset_makes_a_protocol_under_its_name_and_says_what_it_is(name: str) -> None:
    preset = presets.load(name)

    assert Protocol(**preset.options).preset == name
    assert preset.description


@pytest.mark.parametrize(
    ("name", "categorical", "numeric"),
    [
        ("afm-criteo", 26, 13),
        ("criteo-x1", 26, 13),
        ("criteo-x4", 39, 0),
        ("criteo-1tb", 26, 13),
        ("afm-avazu", 22, 0),
        ("avazu-x4", 24, 0),
    ],
)
def test_fields_are_as_many_as_published(name: str, categorical: int, numeric: int) -> None:
    kinds = [kind for kind, _ in _fields(name).values()]

    assert (kinds.count("categorical"), kinds.count("numeric")) == (categorical, numeric)


def test_avazu_x4_makes_three_fields_of_the_hour() -> None:
    fields = _fields("avazu-x4")

    assert [fields[name][1] for name in ("hour", "weekday", "weekend")] == [
        "hour-of-day",
        "weekday",
        "weekend",
    ]


@pytest.mark.parametrize(
    ("name", "shares"),
    [
        ("criteo-x4", (36_672_493, 4_584_062, 4_584_062)),
        ("criteo-x1", (33_003_326, 8_250_124, 4_587_167)),
        ("avazu-x4", (32_343_172, 4_042_897, 4_042_898)),
        ("afm-criteo", (41_256_555, 0, 4_584_062)),
        ("afm-avazu", (32_343_174, 0, 8_085_793)),
    ],
)
def test_shares_are_the_published_ones(name: str, shares: tuple[int, int, int]) -> None:
    protocol = Protocol(**presets.load(name).options)

    assert protocol.validation_share == pytest.approx(shares[1] / sum(shares), abs=1e-4)
    assert protocol.test_share == pytest.approx(shares[2] / sum(shares), abs=1e-4)


def test_a_preset_of_ones_own_is_read_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        'threshold = 5\n[split]\nby = "column"\ncolumn = "day"\ntest_from = "30"\n'
        '[fields.price]\nas = "number"\n[fields.junk]\ndrop = true\n'
    )

    protocol = Protocol(**presets.load(str(path)).options)

    assert (protocol.preset, protocol.threshold, protocol.split_column) == ("mine", 5, "day")
    assert protocol.columns == (
        ColumnRule(column="price", transform="number", field="price"),
        ColumnRule(column="junk", transform=None, field="junk"),
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("threshold = [", "not valid TOML"),
        ("treshold = 3", r"'treshold' is unknown; it takes description, source, threshold"),
        ("threshold = 'ten'", "threshold = 'ten' is of the wrong type"),
        ("threshold = true", "threshold = True is of the wrong type"),
        ("[split]\nshare = 0.1", r"\[split\]: 'share' is unknown"),
        ("[fields.a]\nfrom = 'b'", r"\[fields.a\]: give either as = '…' or drop = true"),
        ("[fields.a]\nas = 'logarithm'", r"\[fields.a\]: .*'logarithm' is unknown; choose from token"),
        ("[fields.a]\nas = 'weekday'", "'weekday' needs a format"),
        ("[fields.a]\nas = 'log'\nformat = '%y'", "'log' has no use for a format"),
        ("fields.a = 3", r"\[fields.a\]: write a table"),
    ],
)
def test_what_a_preset_cannot_say_is_refused_by_name(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)

    with pytest.raises(OptionError, match=message):
        presets.load(str(path))


def test_an_unknown_preset_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="--preset criteo: choose from afm-avazu, afm-criteo"):
        presets.load("criteo")
    with pytest.raises(OptionError, match=r"absent\.toml: no such file"):
        presets.load(str(tmp_path / "absent.toml"))
