from __future__ import annotations

import pytest
import torch
from torch import nn

from afm_dist.dataset.batch import Batch
from afm_dist.errors import OptionError
from afm_dist.models import build_model
from afm_dist.training import forward
from afm_dist.training.forward import Forward, check_precision
from afm_dist.training.optimizer import SplitOptimizer
from afm_dist.training.recipe import Recipe
from afm_dist.training.step import Objective, train_step
from tests.jobs.commands import succeed
from tests.small_dataset import FIELDS

ROWS = 32


def deepfm() -> nn.Module:
    torch.manual_seed(0)
    return build_model("deepfm", FIELDS, {"embedding_dim": 4, "hidden": (16, 8), "dropout": 0.0})


def batch(seed: int, rows: int = ROWS) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    ids = [torch.randint(0, size, (rows,), generator=generator) for size in (20, 5)]
    labels = torch.randint(0, 2, (rows,), generator=generator).float()
    return Batch(torch.stack(ids, 1).int(), torch.randn(rows, 1, generator=generator), labels)


def trained(recipe: Recipe) -> nn.Module:
    model = deepfm()
    optimizer, way = SplitOptimizer(model, 0.01, 1e-5), Forward(model, recipe)
    for step in range(4):
        train_step(model, optimizer, batch(step), ROWS, objective=Objective(way))
    return model


def test_a_compiled_model_is_trained_alike() -> None:
    recipe = Recipe(batch_size=ROWS)

    plain, compiled = trained(recipe), trained(recipe.using(compile=True))

    for (name, one), other in zip(plain.state_dict().items(), compiled.state_dict().values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6, msg=name)


def test_only_full_batches_are_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    model, compiled = deepfm(), []

    def compile(model: nn.Module, **_: object) -> nn.Module:
        return lambda ids, numeric: compiled.append(len(ids)) or model(ids, numeric)

    monkeypatch.setattr(torch, "compile", compile)
    for batch_size, workers in ((2 * ROWS, 2), (3 * ROWS - 1, 3)):
        way = Forward(model, Recipe(batch_size=batch_size, compile=True), world_size=workers)
        for rows in (ROWS, ROWS - 1, ROWS - 2):
            way(batch(0, rows))

    # Of the second, a worker gets one row more or fewer.
    assert compiled == [ROWS, ROWS, ROWS - 1]


def test_a_missing_compiler_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def backend(*_: object) -> None:
        raise RuntimeError("no C++ compiler found")

    compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model, **_: compile(model, backend=backend))
    way = Forward(deepfm(), Recipe(batch_size=ROWS, compile=True))

    with pytest.raises(OptionError, match=r"--compile: .*no C\+\+ compiler found\); leave.*g\+\+") as caught:
        way(batch(0))
    assert "\n" not in str(caught.value)


def compare_precisions() -> None:
    recipe = Recipe(batch_size=ROWS)

    one, other = trained(recipe), trained(recipe.using(precision="bfloat16"))

    assert {tensor.dtype for tensor in other.parameters()} == {torch.float32}
    logits = [model.eval()(batch(9).ids.long(), batch(9).numeric) for model in (one, other)]
    assert not torch.equal(*logits)
    torch.testing.assert_close(*logits, rtol=0.05, atol=0.05)
    assert Forward(other, recipe.using(precision="bfloat16"))(batch(9)).dtype == torch.float32


@pytest.mark.skipif(
    not torch.cpu.get_capabilities().get("avx512_bf16"), reason="needs a processor with bfloat16 arithmetic"
)
def test_bfloat16_is_near_float32_and_leaves_weights_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    # In a process of its own, without the AMX that not every virtual machine allows.
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")

    succeed("-c", f"from {__name__} import compare_precisions; compare_precisions()")


def test_bfloat16_that_ends_the_process_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    monkeypatch.setattr(forward, "_TRIAL", "import os; os.kill(os.getpid(), 4)")

    with pytest.raises(OptionError, match="ended the process"):
        check_precision("bfloat16", torch.device("cpu"))


def test_bfloat16_without_the_arithmetic_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_f": True})

    with pytest.raises(OptionError, match="--precision bfloat16: the cpu of this worker"):
        check_precision("bfloat16", torch.device("cpu"))
    check_precision("float32", torch.device("cpu"))
    assert forward.Forward(deepfm(), Recipe())(batch(0)).dtype == torch.float32
