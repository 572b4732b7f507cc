"""The compiled form: one compilation for all batches, the same logits and the same errors."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch

from afm_dist import prepare_for_inference
from afm_dist.errors import OptionError
from tests.models.small_models import inputs, small_model
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


def test_a_process_may_compile_any_number_of_models(monkeypatch: pytest.MonkeyPatch) -> None:
    # The limit is the tracer's; what it hands its graph to does not matter.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    ids, numeric = inputs(5)
    with torch._dynamo.config.patch(recompile_limit=1):
        for dim in (2, 3, 5):
            model = small_model("deepfm", embedding_dim=dim)

            prepared = prepare_for_inference(model, compile=True)

            torch.testing.assert_close(prepared(ids, numeric), model(ids, numeric).detach())


def test_a_missing_compiler_is_named(tmp_path: Path) -> None:
    torch._dynamo.reset()
    missing = {"cpp.cxx": (str(tmp_path / "g++"),), "force_disable_caches": True}
    message = r"compile: .* It needs a C\+\+ compiler"
    with torch._inductor.config.patch(missing), pytest.raises(OptionError, match=message):
        prepare_for_inference(compressed("nfm", "none"), compile=True)
