"""A record in the making: a folder, the jobs as a user gives them, and what several parts share."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from tests.frozen.digests import Entry, entries_of_file, entries_of_folder, of_json, of_tensor
from tests.frozen.log import write_log

ROOT = Path(__file__).resolve().parents[2]
MODELS = ("autoint", "dcn", "dcnv2", "deepfm", "dlrm", "fibinet", "gdcn", "nfm")

# Small enough for a second each, large enough that ranks and bytes can be chosen.
TRAIN = (
    *("--embedding-dim", "8", "--hidden", "40", "24", "16", "--batch-size", "100"),
    *("--learning-rate", "0.01", "--evaluations-per-epoch", "1", "--use-gpu", "never"),
)
COMPRESS = ("--finetune-batch-size", "200", "--use-gpu", "never")
# Named: which of two nearly equal models is the best on validation depends on the processor.
SHIP = ("--ship", "afm-emb")
RANKS = ("--mlp-rank", "6", "--embedding-dim", "2")
EVERY_METHOD = ("--methods", "afm,svd,weighted,sequential,scratch")
# One evaluation a round: of two that are nearly equal, processors would keep different ones.
ONE_EVALUATION = ("--preset", "afm-criteo")


class JobFailedError(Exception):
    """A job that ended otherwise than with 0, and the end of what it printed."""


class Bench:
    """Runs jobs in this process, and notes what they leave.

    Args:
        folder: Empty; everything is written below it.

    Attributes:
        part: Name of the part at hand.
        noted: Its entries.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.part = ""
        self.noted: dict[str, Entry] = {}
        self._made: dict[str, Path] = {}
        write_log(self.path("clicks.csv"))

    def path(self, name: str) -> Path:
        """Of a file or folder of the record; its parent exists."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def job(self, verb: str, *options: Any) -> None:
        """Run ``python jobs/VERB.py OPTIONS`` here.

        Raises:
            JobFailedError: it did not end with 0.
        """
        job = str(ROOT / "jobs" / f"{verb}.py")
        printed = StringIO()
        with (
            redirect_stdout(printed),
            redirect_stderr(printed),
            patch.object(sys, "argv", [job, *map(str, options)]),
        ):
            try:
                runpy.run_path(job, run_name="__main__")
            except SystemExit as end:
                if end.code:
                    raise JobFailedError(f"{verb}: exit {end.code}: {printed.getvalue()[-1500:]}") from end

    def once(self, name: str, make: Callable[[Path], None]) -> Path:
        """A folder that several parts use; made when it is first needed."""
        if name not in self._made:
            path = self.path(name)
            make(path)
            self._made[name] = path
        return self._made[name]

    def begin(self, part: str) -> None:
        """Forget the entries of the last part."""
        self.part, self.noted = part, {}

    # What several parts use.

    def data(self) -> Path:
        """The dataset of the tiny log."""
        return self.once(
            "data/clicks",
            lambda path: self.job(
                "prepare",
                *("--source", "tabular", "--input", self.path("clicks.csv"), "--label", "click"),
                *("--output", path, "--rows-per-shard", "700"),
            ),
        )

    def trained(self, model: str) -> Path:
        """A run of jobs/train.py."""
        return self.once(
            f"trained/{model}",
            lambda path: self.job("train", "--data", self.data(), "--model", model, "--output", path, *TRAIN),
        )

    def compressed(self, name: str, *options: str, model: str = "deepfm") -> Path:
        """A run of jobs/compress.py."""
        return self.once(
            f"compressed/{name}",
            lambda path: self.job(
                "compress",
                *("--data", self.data(), "--checkpoint", self.trained(model) / "checkpoint"),
                *("--output", path, *COMPRESS, *(() if "--sweep" in options else SHIP), *options),
            ),
        )

    def by_every_method(self, model: str) -> Path:
        """A run of jobs/compress.py that compares all methods."""
        return self.compressed(model, *RANKS, *EVERY_METHOD, model=model)

    def evaluated_once(self) -> Path:
        """The same of a DCNv2, with one evaluation a round."""
        return self.compressed("once", *RANKS, *EVERY_METHOD, *ONE_EVALUATION, model="dcnv2")

    # What is noted.

    def note_folder(self, folder: Path) -> None:
        """Every file of a folder."""
        self.noted |= entries_of_folder(folder, str(self.folder))

    def note_file(self, path: Path, name: str) -> None:
        """One file."""
        self.noted |= entries_of_file(path, name, str(self.folder))

    def note_tensor(self, name: str, value: Tensor) -> None:
        """One tensor."""
        self.noted[name] = of_tensor(value)

    def note_json(self, name: str, value: Any) -> None:
        """Plain values."""
        self.noted[name] = of_json(value, str(self.folder))


@cache
def inputs(sizes: tuple[int, ...], numbers: int, rows: int = 200) -> tuple[Tensor, Tensor]:
    """Made-up rows: ids (B, F) with the first and last of each field, and numbers (B, C)."""
    generator = torch.Generator().manual_seed(5)
    ids = torch.stack([torch.randint(0, size, (rows,), generator=generator) for size in sizes], 1)
    ids[0], ids[1] = 0, torch.tensor(sizes) - 1
    return ids, torch.randn(rows, numbers, generator=generator)
