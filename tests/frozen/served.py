"""The parts of a record about serving: the form for inference, and files for other programs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import onnxruntime
import torch
from torch import Tensor, nn

import afm_dist
from afm_dist import Manifest
from tests.frozen.bench import Bench, inputs

PRECISIONS: tuple[Literal["float32", "bfloat16", "int8"], ...] = ("float32", "bfloat16", "int8")


def rows_of(bench: Bench) -> tuple[Tensor, Tensor]:
    """Inputs of the models of the tiny log."""
    manifest = Manifest.load(str(bench.data()))
    return inputs(tuple(field.cardinality for field in manifest.categorical), len(manifest.numeric))


def logits(model: nn.Module, rows: tuple[Tensor, Tensor]) -> Tensor:
    """Of some inputs."""
    with torch.inference_mode():
        result: Tensor = model(*rows)
    return result


def serving(model: str, compressed: Callable[[Bench], Path] | None = None) -> Callable[[Bench], None]:
    """Logits of the baseline and of what was shipped, as they are and in the form for inference."""

    def part(bench: Bench) -> None:
        rows = rows_of(bench)
        shipped = bench.by_every_method(model) if compressed is None else compressed(bench)
        for name, run in (("baseline", bench.trained(model)), ("compressed", shipped)):
            loaded = afm_dist.from_pretrained(str(run / "checkpoint"))
            bench.note_tensor(f"{name} as it is", logits(loaded, rows))
            for precision in PRECISIONS:
                prepared = afm_dist.prepare_for_inference(loaded, precision=precision)
                bench.note_tensor(f"{name} {precision}", logits(prepared, rows))

    return part


def export(format: str, file_name: str) -> Callable[[Bench], None]:
    """What the file computes; its bytes hold times."""

    def part(bench: Bench) -> None:
        rows = rows_of(bench)
        shipped = bench.by_every_method("deepfm") / "checkpoint"
        for precision in ("float32", "int8"):
            file = bench.path(f"exported-{format}/{precision}-{file_name}")
            bench.job(
                "export",
                *("--format", format, "--checkpoint", shipped, "--output", file),
                *("--precision", precision, "--data", bench.data()),
            )
            bench.note_tensor(f"{precision} logits", _run(file, rows))
        for folder in sorted(file.parent.glob("*.preprocessing")):
            bench.note_folder(folder)

    return part


def _run(file: Path, rows: tuple[Tensor, Tensor]) -> Tensor:
    if file.suffix == ".onnx":
        session = onnxruntime.InferenceSession(str(file))
        given = dict(zip(("ids", "numeric"), (each.numpy() for each in rows), strict=True))
        return torch.from_numpy(session.run(["logit"], given)[0])
    return logits(torch.export.load(file).module(), rows)
