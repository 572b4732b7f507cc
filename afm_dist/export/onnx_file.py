"""ONNX files, for ONNX Runtime and everything else that reads them."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor
from torch.export import ExportedProgram

from afm_dist.errors import OptionError
from afm_dist.export.formats import Run
from afm_dist.export.module import IDS, LOGIT, NUMERIC

# The package is on no index.
INSTALL = "pip install '.[onnx]' in the clone"
# The newest that torch's exporter can convert to.
OPSET = 25
# Of the file with the tensors, where they do not fit into the other.
TENSORS_SUFFIX = ".data"


def prepare() -> None:
    """Look for the libraries, before the work begins.

    Raises:
        OptionError: one is missing.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise OptionError(f"--format onnx: {error}; {INSTALL}") from error


def write(program: ExportedProgram, metadata: Mapping[str, str], path: Path) -> None:
    """Write the file; the texts are its ``metadata_props``.

    The format holds no file of 2 GB: above 1.5 GB the tensors are in a second one beside it, named like
    it with ``.data`` behind.
    """
    with _quiet():
        converted = torch.onnx.export(
            program,
            dynamo=True,
            input_names=[IDS, NUMERIC][: len(program.graph_signature.user_inputs)],
            output_names=[LOGIT],
            opset_version=OPSET,
            verbose=False,
        )
    assert converted is not None
    model = converted.model
    model.metadata_props.update(metadata)
    for node in model.graph:
        # From which line of which file of torch it was made.
        node.metadata_props.clear()
    converted.save(path)


def load(path: Path) -> Run:
    """As its users do, on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]

    def run(*inputs: Tensor) -> Tensor:
        arrays = {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)}
        return torch.from_numpy(session.run([LOGIT], arrays)[0])

    return run


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the libraries' words on torchvision, which is not needed, and on what they do not fold."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
