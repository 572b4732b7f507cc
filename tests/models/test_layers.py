from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from afm_dist.models.layers import Dropout

ROWS, WIDTH = 4_000, 50


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("probability", [0.1, 0.2, 0.5, 0.9])
def test_dropout_drops_its_share_everywhere_and_independently(probability: float) -> None:
    stays = Dropout(probability)(torch.ones(ROWS, WIDTH)) > 0

    # Six standard errors of a share, and of a correlation, over so many draws.
    deviation = (probability * (1 - probability)) ** 0.5
    assert abs(stays.double().mean() - (1 - probability)) < 6 * deviation / (ROWS * WIDTH) ** 0.5
    assert (stays.double().mean(0) - (1 - probability)).abs().max() < 6 * deviation / ROWS**0.5
    correlations = torch.corrcoef(stays.double().T).fill_diagonal_(0)
    assert correlations.abs().max() < 6 / ROWS**0.5


@settings(deadline=None)
@given(probability=st.floats(0, 1), rows=st.integers(0, 7), width=st.integers(1, 9))
def test_dropout_gives_zero_or_the_input_over_the_share_that_stays(
    probability: float, rows: int, width: int
) -> None:
    inputs = torch.randn(rows, width, dtype=torch.float64)

    outputs = Dropout(probability)(inputs)

    expected = inputs / (1 - probability) if probability < 1 else torch.zeros_like(inputs)
    stays = outputs != 0
    # The probability is exact to 2⁻¹⁷.
    error = 2.0**-16 / max(1 - probability, 2.0**-16)
    torch.testing.assert_close(outputs[stays], expected[stays], rtol=error, atol=0)


@pytest.mark.parametrize("probability", [0.2, 0.3, 0.5, 0.77])
def test_the_expectation_is_the_input(probability: float) -> None:
    inputs = torch.full((1 << 20,), 3.0, dtype=torch.float64)

    outputs = Dropout(probability)(inputs)

    deviation = 3.0 * (probability / (1 - probability)) ** 0.5
    assert abs(outputs.mean() - 3.0) < 6 * deviation / len(inputs) ** 0.5


def test_what_is_dropped_has_no_gradient() -> None:
    inputs = torch.randn(ROWS, WIDTH, requires_grad=True)

    outputs = Dropout(0.2)(inputs)
    outputs.sum().backward()

    scale = 65536 / (65536 - 13107)
    torch.testing.assert_close(inputs.grad, torch.where(outputs == 0, 0.0, scale))


@pytest.mark.parametrize("way", ["scoring", "probability 0"])
def test_without_dropout_the_input_is_the_output(way: str) -> None:
    inputs = torch.randn(ROWS, WIDTH)
    layer = Dropout(0.5).eval() if way == "scoring" else Dropout(0.0)

    assert torch.equal(layer(inputs), inputs)


def test_the_same_seed_drops_the_same_with_any_number_of_threads() -> None:
    inputs, layer, threads = torch.randn(ROWS, WIDTH), Dropout(0.5), torch.get_num_threads()
    outputs = []
    for number in (1, 2):
        torch.manual_seed(7)
        torch.set_num_threads(number)
        outputs.append(layer(inputs))
    torch.set_num_threads(threads)

    assert torch.equal(*outputs)
    assert not torch.equal(outputs[0], layer(inputs)), "the next batch loses other numbers"


def test_views_and_other_types_keep_their_shape_and_type() -> None:
    inputs = torch.ones(6, 8, 5, dtype=torch.bfloat16).transpose(0, 2)

    outputs = Dropout(0.5)(inputs)

    assert outputs.shape == inputs.shape
    assert outputs.dtype == torch.bfloat16
    assert set(outputs.unique().tolist()) == {0.0, 2.0}
