"""The runtimes of the inference benchmark: each gives a function of ids and numbers for every model."""

from __future__ import annotations

import copy
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, cast

import torch
from torch import Tensor, nn

from afm_dist.dataset.manifest import Field
from afm_dist.models.deepfm import DeepFM
from afm_dist.serving.prepare import InferenceModel, in_blocks, prepare_for_inference
from afm_dist.serving.rows import Precision
from jobs.benchmarks.inference_models import BASELINE, EMB, MLP, SeparateTables

Runtime = Literal["eager", "form", "compiled", "onnx"]
Score = Callable[[Tensor, Tensor], object]

MLP_ALONE = "MLP alone"
SEPARATE = "separate tables"


def is_installed(runtime: Runtime) -> bool:
    """Whether it can be measured here."""
    return runtime != "onnx" or all(find_spec(name) for name in ("onnx", "onnxruntime", "onnxscript"))


class PreparedRuntime:
    """The models, and what the runtimes make of them.

    Args:
        models: Uncompressed and compressed, by name.
        fields: Of the models.
        precision: Of the tables of the forms for inference.
        rows: Of the largest batch; for so many the MLP alone has inputs.
    """

    def __init__(
        self, models: Mapping[str, DeepFM], fields: Sequence[Field], precision: Precision, rows: int
    ) -> None:
        self._models = models
        self._fields = fields
        self._folder = tempfile.TemporaryDirectory(prefix="inference-")
        self._precision = precision
        self._mlp = models[EMB].mlp
        self._inputs = torch.randn(rows, cast(nn.Linear, self._mlp[0]).in_features)

    def scorers(self, runtime: Runtime) -> dict[str, Score]:
        """By name; for the present number of threads."""
        makers = {"eager": self._eager, "form": self._form, "compiled": self._compiled, "onnx": self._onnx}
        return makers[runtime]()

    def _eager(self) -> dict[str, Score]:
        separate = SeparateTables(self._models[BASELINE]).eval()
        return {**self._models, SEPARATE: separate, MLP_ALONE: self._alone(self._mlp)}

    def _form(self) -> dict[str, Score]:
        return {**self._forms, MLP_ALONE: self._alone(lambda inputs: in_blocks(self._mlp, inputs))}

    def _compiled(self) -> dict[str, Score]:
        torch._dynamo.reset()  # code is compiled for a number of threads
        scores: dict[str, Score] = {}
        for name, form in self._forms.items():
            compiled = copy.copy(form)
            compiled.compile_for_any_batch()
            scores[name] = compiled
        program = torch.compile(self._mlp, fullgraph=True, dynamic=True)
        scores[MLP_ALONE] = self._alone(lambda inputs: in_blocks(program, inputs))
        return scores

    def _onnx(self) -> dict[str, Score]:
        return {name: _session(path) for name, path in self._files.items()}

    def _alone(self, mlp: Callable[[Tensor], Tensor]) -> Score:
        """The compressed model's MLP on ready inputs: all other work left out."""
        return lambda ids, numeric: mlp(self._inputs[: len(ids)])

    @cached_property
    def _files(self) -> dict[str, Path]:
        """The forms as ONNX files."""
        from afm_dist.export import onnx_file
        from afm_dist.export.module import trace

        folder = Path(self._folder.name)
        with warnings.catch_warnings():
            # Torch's own, of what it calls itself.
            warnings.filterwarnings("ignore", category=FutureWarning, module="copyreg|torch")
            for name, form in self._forms.items():
                onnx_file.write(trace(form, self._fields), {}, folder / f"{name}.onnx")
        return {name: folder / f"{name}.onnx" for name in self._forms}

    @cached_property
    def _forms(self) -> dict[str, InferenceModel]:
        forms = {}
        for name, model in self._models.items():
            forms[name] = cast(InferenceModel, prepare_for_inference(model, precision=self._precision))
            if name == MLP:  # its tables are the baseline's
                forms[MLP].scorer.table = forms[BASELINE].scorer.table
        return forms


def _session(path: Path) -> Score:
    """ONNX Runtime with PyTorch's number of threads."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Its threads would go on spinning into the time of what is measured next.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]

    def score(*inputs: Tensor) -> object:
        # Without numeric fields a file has no input for them.
        arrays = {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=False)}
        return session.run(None, arrays)

    return score
