"""Small models with random weights, their inputs, and NumPy's account of what all models share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from afm_dist.dataset.manifest import Field
from afm_dist.models import ARCHITECTURES, build_model
from afm_dist.models.base import CTRModel

Array = NDArray[np.float64]
Weights = dict[str, Array]

MODELS = tuple(ARCHITECTURES)
FOLDABLE = tuple(name for name, architecture in ARCHITECTURES.items() if architecture.folds)
UNFOLDABLE = tuple(name for name in MODELS if name not in FOLDABLE)

CARDINALITIES = (7, 4, 9)
STARTS = (0, 7, 11)
T = 4
FIELDS = (
    Field(name="site", kind="categorical", cardinality=7),
    Field(name="age", kind="numeric"),
    Field(name="ad", kind="categorical", cardinality=4),
    Field(name="price", kind="numeric"),
    Field(name="hour", kind="categorical", cardinality=9),
)
NO_NUMBERS = tuple(field for field in FIELDS if field.kind == "categorical")
SHAPES: dict[str, dict[str, Any]] = {
    name: {"embedding_dim": T, "hidden": (8, 8, 8), "dropout": 0.0} for name in MODELS
}
SHAPES["dlrm"]["bottom"] = (6, 5)


def small_model(name: str, fields: tuple[Field, ...] = FIELDS, **changes: Any) -> CTRModel:
    """In eval mode; all weights random, so that nothing cancels or vanishes."""
    torch.manual_seed(0)
    model = build_model(name, fields, {**SHAPES[name], **changes})
    with torch.no_grad():
        for parameter in model.parameters():
            nn.init.normal_(parameter, 0.1, 0.4)
    return model.eval()


def inputs(rows: int = 300, fields: tuple[Field, ...] = FIELDS, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    sizes = [field.cardinality for field in fields if field.kind == "categorical"]
    ids = [torch.randint(0, size, (rows,), generator=generator) for size in sizes]
    return torch.stack(ids, 1), torch.randn(rows, len(fields) - len(sizes), generator=generator)


def logits(model: nn.Module, rows: int = 300, fields: tuple[Field, ...] = FIELDS, seed: int = 2) -> Tensor:
    with torch.inference_mode():
        result: Tensor = model(*inputs(rows, fields, seed))
    return result


# NumPy, row by row, in float64 -------------------------------------------------------------------

Interactions = Callable[[Weights, Array, Array], float]


def assert_logits_follow(name: str, rest: Interactions, **changes: Any) -> None:
    """The model's logits are those of the first-order term and ``rest``, with and without numbers.

    Args:
        name: Of the architecture.
        rest: From the weights, a row's embeddings (F, T) and its numbers (C,): the logit without
            the first-order term.
        changes: Of the model's hyper-parameters.
    """
    for fields in (FIELDS, NO_NUMBERS):
        model = small_model(name, fields, **changes).double()
        weights = {key: value.numpy() for key, value in model.state_dict().items()}
        ids, numeric = inputs(20, fields)
        expected = []
        for row, numbers in zip(ids.numpy(), numeric.double().numpy(), strict=True):
            rows = [start + i for start, i in zip(STARTS, row, strict=True)]
            first_order = weights["linear.weight"][rows].sum() + weights["linear.numeric"] @ numbers
            expected.append(first_order + rest(weights, weights["embedding.weight"][rows], numbers))
        with torch.inference_mode():
            result = model(ids, numeric.double()).numpy()
        np.testing.assert_allclose(result, expected, rtol=0, atol=1e-10)
        assert np.std(expected) > 0.1  # logits that hardly differ would prove little


def relu(x: Array) -> Array:
    return np.maximum(x, 0.0)


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def mlp(weights: Weights, x: Array) -> float:
    """Hidden layers with ReLU, then one output."""
    layers = sorted({int(key.split(".")[1]) for key in weights if key.startswith("mlp.")})
    for layer in layers:
        x = weights[f"mlp.{layer}.weight"] @ x + weights[f"mlp.{layer}.bias"]
        if layer != layers[-1]:
            x = relu(x)
    return float(x[0])


def flat(vectors: Array, numbers: Array) -> Array:
    """Embeddings and numbers side by side."""
    return np.array([*(value for vector in vectors for value in vector), *numbers])
