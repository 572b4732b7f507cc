"""Files of AOTInductor: a shared library compiled from the graph, with its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch._inductor.cpp_builder import get_cpp_compiler
from torch._inductor.exc import CppCompileError, InductorError, InvalidCxxCompiler
from torch.export import ExportedProgram

from afm_dist.errors import OptionError
from afm_dist.export.formats import Run

_ADVICE = (
    "it needs a C++ compiler, e.g. the package g++ (or its path in the environment variable CXX); "
    "--format torch-export and onnx need none"
)


def prepare() -> None:
    """Look for a compiler, before the work begins.

    Raises:
        OptionError: there is none.
    """
    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise OptionError(f"--format aoti: {error}; {_ADVICE}") from error


def write(program: ExportedProgram, metadata: Mapping[str, str], path: Path) -> None:
    """Compile for this machine's kind of processor; the texts are the package's metadata.

    Raises:
        OptionError: the compiler fails.
    """
    configs = {
        "aot_inductor.metadata": dict(metadata),
        # As many as the process has that runs it, not as this one has.
        "cpp.dynamic_threads": True,
    }
    try:
        torch._inductor.aoti_compile_and_package(program, package_path=str(path), inductor_configs=configs)
    except (CppCompileError, InductorError) as error:
        reason = " ".join(str(error).split())
        raise OptionError(f"--format aoti: the compiler failed ({reason}); {_ADVICE}") from error


def load(path: Path) -> Run:
    """As its users do."""
    model = torch._inductor.aoti_load_package(str(path))

    def run(*inputs: Tensor) -> Tensor:
        with torch.inference_mode():
            logits: Tensor = model(*inputs)
        return logits

    return run
