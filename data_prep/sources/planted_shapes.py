"""The shapes of planted logs: columns, cardinalities and missing shares of Criteo's and Avazu's logs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ShapeName = Literal["criteo", "avazu"]


@dataclass(frozen=True, kw_only=True)
class TokenField:
    """A categorical column.

    Attributes:
        name: The column's name.
        cardinality: Tokens it has, a missing one not counted.
        missing: Share of the rows without a token.
        missing_text: What then stands in the raw log; None: nothing.
        integers: The tokens, most frequent first; empty: each is eight hex digits drawn by the seed.
    """

    name: str
    cardinality: int
    missing: float = 0.0
    missing_text: str | None = None
    integers: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class IntegerField:
    """A numeric column: ``floor(exp(N(log_mean, log_deviation^2))) - shift``, or missing."""

    name: str
    missing: float
    log_mean: float
    log_deviation: float
    shift: int = 0


@dataclass(frozen=True, kw_only=True)
class LogShape:
    """What a planted log looks like.

    Attributes:
        integers: Numeric columns.
        tokens: Categorical columns.
        pairs: Categorical columns whose hidden vectors multiply.
        days: Days that each file covers, hour by hour; 0: the format has no time.
        positive_share: Share of clicks.
        bayes_auc: AUC of the true probabilities.
        bytes_per_row: Mean length of a line.
    """

    integers: tuple[IntegerField, ...] = ()
    tokens: tuple[TokenField, ...]
    pairs: tuple[tuple[str, str], ...]
    days: int = 0
    positive_share: float
    bayes_auc: float
    bytes_per_row: int

    def position(self, name: str) -> int:
        """Index of a categorical column."""
        return [field.name for field in self.tokens].index(name)


# The largest vocabularies are cut to a laptop's measure, here and in Avazu's shape.
_CRITEO_CARDINALITIES = (
    1_460, 583, 50_000, 40_000, 305, 24, 12_517, 633, 3, 30_000, 5_683, 50_000, 3_194,
    27, 14_992, 50_000, 10, 5_652, 2_173, 4, 50_000, 18, 15, 20_000, 105, 15_000,
)  # fmt: skip
_CRITEO_TOKEN_MISSING = (
    0.0, 0.0, 0.034, 0.034, 0.0, 0.121, 0.0, 0.0, 0.0, 0.0, 0.0, 0.034, 0.0,
    0.0, 0.0, 0.034, 0.0, 0.0, 0.44, 0.44, 0.034, 0.762, 0.0, 0.034, 0.44, 0.44,
)  # fmt: skip
_CRITEO_INTEGER_MISSING = (
    0.454, 0.0, 0.215, 0.217, 0.026, 0.224, 0.043, 0.0005, 0.043, 0.454, 0.043, 0.765, 0.217,
)  # fmt: skip
_CRITEO_LOG_MEAN = (0.6, 1.9, 2.0, 1.7, 7.5, 3.6, 1.6, 2.2, 3.8, 0.3, 0.7, 0.2, 1.8)
_CRITEO_LOG_DEVIATION = (1.1, 2.0, 1.3, 0.9, 2.2, 1.7, 1.3, 1.0, 1.4, 0.5, 0.8, 0.6, 1.0)
_CRITEO_SHIFT = (0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)

CRITEO = LogShape(
    integers=tuple(
        IntegerField(name=f"I{n}", missing=missing, log_mean=mean, log_deviation=deviation, shift=shift)
        for n, (missing, mean, deviation, shift) in enumerate(
            zip(
                _CRITEO_INTEGER_MISSING,
                _CRITEO_LOG_MEAN,
                _CRITEO_LOG_DEVIATION,
                _CRITEO_SHIFT,
                strict=True,
            ),
            start=1,
        )
    ),
    tokens=tuple(
        TokenField(name=f"C{n}", cardinality=cardinality, missing=missing)
        for n, (cardinality, missing) in enumerate(
            zip(_CRITEO_CARDINALITIES, _CRITEO_TOKEN_MISSING, strict=True), start=1
        )
    ),
    # Small with small, small with large.
    pairs=(
        ("C6", "C9"),
        ("C6", "C17"),
        ("C9", "C14"),
        ("C14", "C22"),
        ("C17", "C23"),
        ("C1", "C9"),
        ("C5", "C23"),
        ("C21", "C9"),
    ),
    positive_share=0.256,
    bayes_auc=0.80,
    bytes_per_row=245,
)


def _spread(cardinality: int, low: int, high: int) -> tuple[int, ...]:
    """Distinct integers in ``[low, high]``, in no order that a model could use."""
    size = high - low + 1
    # The stride is a prime above every size here, so the first ``size`` multiples are all different.
    return tuple(low + rank * 1_000_003 % size for rank in range(cardinality))


def _listed(name: str, *integers: int, missing: float = 0.0, missing_text: str | None = None) -> TokenField:
    return TokenField(
        name=name, cardinality=len(integers), missing=missing, missing_text=missing_text, integers=integers
    )


# In apps the site is one and the same token, on sites the app; most devices share one id.
AVAZU = LogShape(
    tokens=(
        _listed("C1", 1005, 1002, 1010, 1012, 1007, 1001, 1008),
        _listed("banner_pos", 0, 1, 7, 2, 4, 5, 3),
        TokenField(name="site_id", cardinality=4_736, missing=0.36, missing_text="85f751fd"),
        TokenField(name="site_domain", cardinality=7_744, missing=0.37, missing_text="c4e18dd6"),
        TokenField(name="site_category", cardinality=25, missing=0.41, missing_text="50e219e0"),
        TokenField(name="app_id", cardinality=8_551, missing=0.64, missing_text="ecad2386"),
        TokenField(name="app_domain", cardinality=558, missing=0.67, missing_text="7801e8d9"),
        TokenField(name="app_category", cardinality=35, missing=0.65, missing_text="07d7df22"),
        TokenField(name="device_id", cardinality=100_000, missing=0.82, missing_text="a99f214a"),
        TokenField(name="device_ip", cardinality=200_000),
        TokenField(name="device_model", cardinality=8_251),
        _listed("device_type", 1, 0, 4, 5, 2),
        _listed("device_conn_type", 0, 2, 3, 5),
        _listed("C14", *_spread(2_626, 375, 24_052)),
        _listed("C15", 320, 300, 216, 728, 120, 1024, 480, 768),
        _listed("C16", 50, 250, 36, 480, 90, 20, 768, 320, 1024),
        _listed("C17", *_spread(435, 112, 2_758)),
        _listed("C18", 0, 3, 2, 1),
        _listed("C19", *_spread(68, 33, 1_959)),
        _listed("C20", *_spread(171, 100_000, 100_248), missing=0.47, missing_text="-1"),
        _listed("C21", *_spread(60, 1, 255)),
    ),
    pairs=(
        ("banner_pos", "device_type"),
        ("C1", "device_conn_type"),
        ("banner_pos", "C18"),
        ("site_category", "device_conn_type"),
        ("app_category", "C18"),
        ("C16", "C21"),
        ("site_id", "banner_pos"),
        ("C17", "device_type"),
    ),
    days=10,
    positive_share=0.170,
    bayes_auc=0.80,
    bytes_per_row=155,
)

SHAPES: dict[ShapeName, LogShape] = {"criteo": CRITEO, "avazu": AVAZU}
