"""The compiled form: one compilation for all batches, the same logits and the same errors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from afm_dist import prepare_for_inference
from afm_dist.errors import OptionError
from tests.models.small_models import inputs
from tests.serving.test_prepare import compressed


def test_one_compilation_serves_every_batch() -> None:
    model = compressed("deepfm", "emb")
    prepared = prepare_for_inference(model, compile=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for rows in (0, 1, 2, 300):
            ids, numeric = inputs(rows)
            expected = model(ids, numeric).detach()
            torch.testing.assert_close(prepared(ids, numeric), expected, rtol=1e-5, atol=1e-5)
            with torch.inference_mode():
                torch.testing.assert_close(prepared(ids.clone().int(), numeric.clone()), expected)
        ids, numeric = inputs(12)
        torch.testing.assert_close(prepared(ids.T.contiguous().T, numeric), model(ids, numeric).detach())
        ids[1, 1] = 4
        with pytest.raises(ValueError, match="id 4 in row 1 of field 'ad' lies outside its table of 4 rows"):
            prepared(ids, numeric)


def test_a_missing_compiler_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch._dynamo.reset()
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", (str(tmp_path / "g++"),))
    monkeypatch.setattr(torch._inductor.config, "force_disable_caches", True)
    with pytest.raises(OptionError, match=r"compile: .* It needs a C\+\+ compiler"):
        prepare_for_inference(compressed("nfm", "none"), compile=True)
