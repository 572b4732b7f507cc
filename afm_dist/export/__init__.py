"""Trained models as files that run without this library: torch.export, AOTInductor, ONNX."""

from afm_dist.export.check import Parity, ParityError
from afm_dist.export.export import FORMATS, export

__all__ = ["FORMATS", "Parity", "ParityError", "export"]
