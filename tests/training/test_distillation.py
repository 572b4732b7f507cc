from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from afm_dist.training.distillation import distillation_loss


def in_float64(
    logits: np.ndarray, labels: np.ndarray, teacher: np.ndarray, weight: float, temperature: float
) -> float:
    """(1 − w)·BCE + w·T²·BCE as it is written in a text book."""

    def cross_entropy(z: np.ndarray, target: np.ndarray) -> float:
        p = 1 / (1 + np.exp(-z))
        return float(-(target * np.log(p) + (1 - target) * np.log(1 - p)).sum())

    soft_labels = 1 / (1 + np.exp(-teacher / temperature))
    soft = cross_entropy(logits / temperature, soft_labels)
    return (1 - weight) * cross_entropy(logits, labels) + weight * temperature**2 * soft


@pytest.mark.parametrize("weight", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_the_loss_is_that_of_float64(weight: float, temperature: float) -> None:
    generator = np.random.default_rng(0)
    logits, teacher = generator.normal(size=(2, 50)) * 3
    labels = (generator.random(50) < 0.3).astype(float)

    loss = distillation_loss(
        *(torch.tensor(values, dtype=torch.float32) for values in (logits, labels, teacher)),
        weight=weight,
        temperature=temperature,
    )

    assert float(loss) == pytest.approx(in_float64(logits, labels, teacher, weight, temperature), rel=1e-6)


def test_a_model_that_says_what_its_teacher_says_has_nothing_to_learn_from_it() -> None:
    logits = torch.tensor([-2.0, 0.5, 3.0], requires_grad=True)

    distillation_loss(logits, torch.ones(3), logits.detach(), weight=0.999999, temperature=2.0).backward()

    torch.testing.assert_close(logits.grad, torch.zeros(3), rtol=0, atol=2e-6)


@pytest.mark.parametrize("temperature", [10.0, 100.0])
def test_at_a_high_temperature_it_descends_the_difference_of_the_logits(temperature: float) -> None:
    # Hinton et al., eq. 4: the gradient becomes (z − t)/4 for two classes, whatever the temperature.
    logits, teacher = torch.tensor([1.0, -1.0], requires_grad=True), torch.tensor([0.0, 2.0])

    distillation_loss(logits, torch.ones(2), teacher, weight=1 - 1e-7, temperature=temperature).backward()

    torch.testing.assert_close(logits.grad, (logits.detach() - teacher) / 4, rtol=1e-2, atol=1e-5)


def test_large_logits_have_a_finite_loss() -> None:
    logits = torch.tensor([200.0, -200.0])

    loss = distillation_loss(logits, torch.tensor([0.0, 1.0]), -logits, weight=0.5, temperature=1.0)

    assert math.isclose(float(loss), 400.0)
