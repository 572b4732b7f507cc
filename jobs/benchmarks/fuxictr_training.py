"""Train DeepFM with FuxiCTR, in an environment of its own; prints the seconds it took.

Run by the training suite with the interpreter of an environment that holds ``fuxictr`` (the extra
``peers``) and torch: it must import nothing of afm-dist. The model is put together from FuxiCTR's
layers as its model zoo does, which its package does not contain, and takes FuxiCTR's own steps.

Every line of the standard input, the name of a file with ids (B, F), labels and a number of steps, is
answered with a line.
"""

import logging
import sys
import time
from functools import lru_cache

import numpy as np
import torch
from fuxictr.features import FeatureMap
from fuxictr.pytorch.layers import FactorizationMachine, FeatureEmbedding, MLP_Block
from fuxictr.pytorch.models import BaseModel

# That of its ``fit``.
MAX_NORM = 10.0


class FuxiCTRDeepFM(BaseModel):  # type: ignore[misc]
    """Linear term, factorization machine and MLP over the same embeddings."""

    def __init__(self, feature_map: FeatureMap, dim: int, hidden: list[int], rate: float, l2: float) -> None:
        super().__init__(
            feature_map, verbose=0, model_root="unused", metrics=["AUC"], embedding_regularizer=l2
        )
        self.embedding_layer = FeatureEmbedding(feature_map, dim)
        self.fm = FactorizationMachine(feature_map)
        self.mlp = MLP_Block(len(feature_map.features) * dim, hidden, output_dim=1)
        self._max_gradient_norm = MAX_NORM
        self.compile("adam", "binary_crossentropy", rate)
        self.reset_parameters()

    def forward(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """As FuxiCTR's models do: a dictionary in, probabilities out."""
        x = self.get_inputs(inputs)
        embeddings = self.embedding_layer(x)
        logits = self.fm(x, embeddings) + self.mlp(embeddings.flatten(start_dim=1))
        return {"y_pred": self.output_activation(logits)}


def schema(sizes: list[int]) -> FeatureMap:
    """Fields C1, C2, … of so many ids each."""
    feature_map = FeatureMap("peer", "unused")
    for i, size in enumerate(sizes):
        feature_map.features[f"C{i + 1}"] = {"source": "", "type": "categorical", "vocab_size": size}
    feature_map.num_fields = len(sizes)
    feature_map.labels = ["label"]
    feature_map.set_column_index()
    return feature_map


def main(sizes: str, dim: str, hidden: str, rate: str, l2: str, threads: str) -> None:
    """Train as often as asked."""
    logging.disable()
    torch.set_num_threads(int(threads))
    numbers = [[int(number) for number in text.split(",")] for text in (sizes, hidden)]
    model = FuxiCTRDeepFM(schema(numbers[0]), int(dim), numbers[1], float(rate), float(l2)).train()
    for line in sys.stdin:
        path, steps = line.split()
        batches = load(path)
        started = time.perf_counter()
        for step in range(int(steps)):
            model.train_step(batches[step % len(batches)])
        print(f"seconds {time.perf_counter() - started:.6f}", flush=True)


@lru_cache
def load(path: str) -> list[dict[str, torch.Tensor]]:
    """Batches as FuxiCTR wants them: a tensor a column."""
    batches = []
    with np.load(path) as stored:
        for ids, labels in zip(stored["ids"], stored["labels"], strict=True):
            batch = {f"C{i + 1}": torch.from_numpy(column.copy()) for i, column in enumerate(ids.T)}
            batches.append({**batch, "label": torch.from_numpy(labels)})
    return batches


if __name__ == "__main__":
    main(*sys.argv[1:])
