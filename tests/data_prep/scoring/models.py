"""A raw log, a dataset prepared from it, and a model with random weights that could be trained on that."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import torch
from torch import nn

from afm_dist.checkpoint import preprocessing
from afm_dist.checkpoint.config import ModelConfig
from afm_dist.checkpoint.pretrained import from_pretrained, save_pretrained
from afm_dist.dataset.manifest import Manifest
from afm_dist.models import build_model
from data_prep.pipeline import prepare
from data_prep.protocol import Protocol
from data_prep.scoring.pipeline import ScoringSummary, predict
from data_prep.scoring.source import open_source
from data_prep.sources.source import Source

SHAPE = {"embedding_dim": 4, "hidden": [16, 8]}


@dataclass(frozen=True)
class Trained:
    """What is on disk.

    Attributes:
        log: The raw log.
        data: The dataset made of it.
        checkpoint: The checkpoint directory, with its preprocessing.
    """

    log: Path
    data: Manifest
    checkpoint: str

    @property
    def model(self) -> nn.Module:
        return from_pretrained(self.checkpoint)

    @property
    def manifest(self) -> Manifest:
        return preprocessing.load(self.checkpoint)

    def source(self, *paths: Path | str, keep: tuple[str, ...] = ()) -> Source:
        return open_source([str(path) for path in paths or (self.log,)], self.manifest, keep=keep)

    def predict(
        self, output: Path | str, *paths: Path | str, keep: tuple[str, ...] = (), **options: object
    ) -> ScoringSummary:
        source = self.source(*paths, keep=keep)
        return predict(self.model, self.manifest, source, str(output), **options)  # type: ignore[arg-type]

    def scores(self, folder: Path, *paths: Path, keep: tuple[str, ...] = ()) -> list[float | None]:
        """Scores of some files."""
        output = folder / "scores.parquet"
        self.predict(output, *paths, keep=keep, max_bad_rows=1.0)
        return pq.read_table(output)["score"].to_pylist()  # type: ignore[no-any-return]


def train(log: Path, source: Source, protocol: Protocol, folder: Path) -> Trained:
    """Prepare a log, and save a model of random weights with what makes raw rows its inputs."""
    manifest = prepare(source, str(folder / "data"), protocol)
    torch.manual_seed(0)
    model = build_model("deepfm", manifest.fields, SHAPE)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    config = ModelConfig(architecture="deepfm", hyper_parameters=SHAPE, fields=manifest.fields)
    checkpoint = str(folder / "checkpoint")
    save_pretrained(model, checkpoint, config)
    assert preprocessing.attach(manifest, checkpoint)
    return Trained(log, manifest, checkpoint)
