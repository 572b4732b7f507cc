from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from afm_dist.compression.plan import Plan, PlanEntry
from afm_dist.compression.rewrite import compress_, restructure_
from afm_dist.dataset.manifest import Field
from afm_dist.errors import OptionError
from afm_dist.methods.low_rank.config import LowRank
from afm_dist.methods.low_rank.layers import LowRankLinear, ProjectedEmbedding
from afm_dist.methods.low_rank.ranks import FixedRank, KeptEnergy, plan_ranks
from afm_dist.models.deepfm import DeepFM
from afm_dist.statistics.collect import collect_moments
from afm_dist.statistics.moments import Moments

FIELDS = (
    Field(name="site", kind="categorical", cardinality=40),
    Field(name="ad", kind="categorical", cardinality=9),
    Field(name="age", kind="numeric"),
    Field(name="hour", kind="categorical", cardinality=25),
)
CARDINALITIES = (40, 9, 25)
T = 6


def deepfm(seed: int = 0) -> DeepFM:
    """A DeepFM in eval mode whose logits have a deviation near 1."""
    torch.manual_seed(seed)
    model = DeepFM(FIELDS, embedding_dim=T, hidden=(12, 10, 8))
    with torch.no_grad():
        model.embedding.weight.normal_(0.2, 0.4)
        model.linear.weight.normal_(0, 0.3)
        model.linear.numeric.normal_()
    return model.eval()


def inputs(rows: int = 600, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = [torch.randint(0, size, (rows,), generator=generator) for size in CARDINALITIES]
    return torch.stack(ids, 1), torch.randn(rows, 1, generator=generator)


def collect(model: nn.Module, targets: list[str]) -> dict[str, Moments]:
    return collect_moments(model, [inputs()], targets, forward_fn=lambda m, batch: m(*batch))


def logits(model: nn.Module) -> Tensor:
    with torch.inference_mode():
        return model(*inputs(seed=2))


def plain_model(*, bias: bool = True, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(7, 20, bias=bias), nn.Tanh(), nn.Linear(20, 12, bias=bias), nn.Tanh(), nn.Linear(12, 3)
    ).to(dtype)


def plain_inputs(dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(400, 7, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# Linear layers of a plain model ------------------------------------------------------------------


@pytest.mark.parametrize("method", ["afm", "svd"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)], ids=["f32", "f64"]
)
@pytest.mark.parametrize("mode", ["none", "shifted"])
def test_full_rank_reproduces_a_plain_model(
    method: str, bias: bool, dtype: torch.dtype, tolerance: float, mode: str
) -> None:
    model = plain_model(bias=bias, dtype=dtype)
    x = plain_inputs(dtype)
    expected = model(x)
    moments = collect_moments(model, [x], [nn.Linear])

    plan = plan_ranks(dict(moments), KeptEnergy(share=1.0), method=method, activation=mode, kappa=100.0)
    compress_(model, plan, moments)

    assert [entry.name for entry in plan.entries] == ["0", "2", "4"]
    assert all(isinstance(model[i], LowRankLinear) for i in (0, 2, 4))
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    torch.testing.assert_close(model(x), expected, rtol=0, atol=tolerance)


def test_compressing_returns_the_same_model_smaller() -> None:
    model = plain_model()
    moments = collect_moments(model, [plain_inputs()], ["2"])

    result = compress_(model, plan_ranks(dict(moments), FixedRank(rank=2)), moments)

    assert result is model
    assert isinstance(model[2], LowRankLinear)
    assert isinstance(model[0], nn.Linear)
    assert sum(p.numel() for p in model[2].parameters()) == 2 * 20 + 2 * 12 + 12


def test_the_rewritten_layer_has_the_residual_of_the_dropped_eigenvalues() -> None:
    model = plain_model(dtype=torch.float64)
    x = plain_inputs(torch.float64)
    hidden = model[:2](x)
    before = model[2](hidden)
    moments = collect_moments(model, [x], ["2"])
    dropped = torch.linalg.eigvalsh(moments["2"].covariance).flip(0)[4:].sum()

    compress_(model, plan_ranks(dict(moments), FixedRank(rank=4)), moments)

    residual = (model[2](hidden) - before).square().sum(1).mean()
    assert float(residual.detach()) == pytest.approx(float(dropped), rel=1e-6)


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_of_the_model_is_kept(training: bool) -> None:
    model = plain_model().train(training)
    moments = collect_moments(model, [plain_inputs()], ["0", "2"])

    compress_(model, plan_ranks(dict(moments), FixedRank(rank=2)), moments)

    assert {module.training for module in model.modules()} == {training}


def test_the_rewritten_model_can_be_trained() -> None:
    model = plain_model()
    x = plain_inputs()
    moments = collect_moments(model, [x], [nn.Linear])
    compress_(model, plan_ranks(dict(moments), FixedRank(rank=3), activation="shifted"), moments)

    model(x).square().sum().backward()

    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_structure_alone_has_the_shapes_of_the_compressed_model() -> None:
    compressed = plain_model()
    moments = collect_moments(compressed, [plain_inputs()], [nn.Linear])
    plan = plan_ranks(dict(moments), FixedRank(rank=2), activation="shifted")
    compress_(compressed, plan, moments)

    structure = restructure_(plain_model(), plan)

    assert {name: tensor.shape for name, tensor in structure.state_dict().items()} == {
        name: tensor.shape for name, tensor in compressed.state_dict().items()
    }


# Embeddings of a plain model ---------------------------------------------------------------------


@pytest.mark.parametrize("method", ["afm", "svd"])
@pytest.mark.parametrize("sparse", [True, False])
def test_full_rank_reproduces_a_plain_embedding(method: str, sparse: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(30, 5, sparse=sparse), nn.Flatten(), nn.Linear(10, 1))
    ids = torch.randint(0, 30, (200, 2), generator=torch.Generator().manual_seed(0))
    expected = model(ids)
    moments = collect_moments(model, [ids], [nn.Embedding])

    compress_(model, plan_ranks(dict(moments), FixedRank(rank=5), method=method), moments)

    assert isinstance(model[0], ProjectedEmbedding)
    assert model[0].codes.sparse == sparse
    torch.testing.assert_close(model(ids), expected, rtol=0, atol=1e-5)


def test_frozen_weights_stay_frozen() -> None:
    table = nn.Embedding.from_pretrained(torch.randn(30, 5, generator=torch.Generator().manual_seed(0)))
    model = nn.Sequential(table, nn.Linear(5, 4))
    moments = collect_moments(model, [torch.arange(30)], ["*"])

    compress_(model, plan_ranks(dict(moments), FixedRank(rank=2)), moments)

    assert {name for name, p in model.named_parameters() if p.requires_grad} == {
        "1.first.weight",
        "1.second.weight",
        "1.second.bias",
    }


def test_a_module_under_two_names_is_replaced_under_both() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.site = self.referer = nn.Embedding(30, 5)
            self.towers = nn.ModuleList([nn.Sequential(nn.Linear(10, 10))] * 2)

        def forward(self, ids: Tensor) -> Tensor:
            x = torch.cat([self.site(ids[:, 0]), self.referer(ids[:, 1])], 1)
            return self.towers[1](self.towers[0](x))

    torch.manual_seed(0)
    model, ids = Shared(), torch.randint(0, 30, (200, 2), generator=torch.Generator().manual_seed(0))
    expected = model(ids)
    moments = collect_moments(model, [ids], [nn.Embedding, nn.Linear])
    assert {name: item.count for name, item in moments.items()} == {"site": 400, "towers.0.0": 400}

    compress_(model, plan_ranks(dict(moments), KeptEnergy(share=1.0)), moments)

    assert isinstance(model.site, ProjectedEmbedding)
    assert model.site is model.referer
    assert model.towers[0] is model.towers[1]
    torch.testing.assert_close(model(ids), expected, rtol=0, atol=1e-5)


# DeepFM ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["afm", "svd"])
def test_full_rank_reproduces_the_logits_of_deepfm_in_its_linear_layers(method: str) -> None:
    model = deepfm()
    expected = logits(model)
    moments = collect(model, ["mlp.*"])

    compress_(model, plan_ranks(dict(moments), KeptEnergy(share=1.0), method=method), moments)

    torch.testing.assert_close(logits(model), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", ["afm", "svd"])
@pytest.mark.parametrize("folded_into", [None, "mlp.0"], ids=["unfolded", "folded"])
def test_full_rank_reproduces_the_logits_of_deepfm_in_its_tables(
    method: str, folded_into: str | None
) -> None:
    model = deepfm()
    expected = logits(model)
    moments = collect(model, ["embedding"])

    compress_(
        model, plan_ranks(dict(moments), FixedRank(rank=T), method=method, folded_into=folded_into), moments
    )

    torch.testing.assert_close(logits(model), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", ["afm", "svd"])
@pytest.mark.parametrize("rank", range(1, T + 1))
def test_folded_and_unfolded_tables_agree(method: str, rank: int) -> None:
    results: list[Tensor] = []
    for target in (None, "mlp.0"):
        model = deepfm()
        moments = collect(model, ["embedding"])
        plan = plan_ranks(dict(moments), FixedRank(rank=rank), method=method, folded_into=target)
        results.append(logits(compress_(model, plan, moments)))

    torch.testing.assert_close(results[0], results[1], rtol=0, atol=1e-5)


def test_folding_narrows_the_layer_that_reads_the_tables() -> None:
    model = deepfm()
    moments = collect(model, ["embedding"])

    compress_(model, plan_ranks(dict(moments), FixedRank(rank=2), folded_into="mlp.0"), moments)

    assert model.mlp[0].in_features == 3 * 2 + 1
    assert model.embedding.weight.shape == (sum(CARDINALITIES), 2)


def test_tables_and_layers_compressed_one_after_the_other_reproduce_the_logits() -> None:
    model = deepfm()
    expected = logits(model)
    for targets, fold in ((["mlp.3", "mlp.6"], None), (["embedding"], "mlp.0")):
        moments = collect(model, targets)
        compress_(model, plan_ranks(dict(moments), KeptEnergy(share=1.0), folded_into=fold), moments)

    torch.testing.assert_close(logits(model), expected, rtol=0, atol=1e-5)


def test_a_folded_model_accepts_a_batch_without_rows() -> None:
    # The last batch of an epoch may have fewer rows than there are workers.
    model = deepfm()
    moments = collect(model, ["embedding"])
    compress_(model, plan_ranks(dict(moments), FixedRank(rank=2), folded_into="mlp.0"), moments)

    assert model(torch.empty(0, 3, dtype=torch.int32), torch.empty(0, 1)).shape == (0,)


# What is refused ---------------------------------------------------------------------------------


def entry(name: str, rank: int = 2, **others: object) -> Plan:
    return Plan(entries=(PlanEntry(name, LowRank(factors="afm", rank=rank, **others)),))


def both(model: Callable[[], nn.Module], plan: Plan, message: str) -> None:
    """The mistake is refused with and without values."""
    with pytest.raises(OptionError, match=message):
        restructure_(model(), plan)
    moments = {e.name: Moments.empty(1) for e in plan.entries}
    built = model()
    if isinstance(built, DeepFM):
        moments = collect(built, ["embedding", "mlp.*"])
    with pytest.raises(OptionError, match=message):
        compress_(built, plan, moments)


@pytest.mark.parametrize("target", ["mlp.3", "mlp.9", "linear"])
def test_folding_is_refused_where_the_model_does_not_declare_it(target: str) -> None:
    both(deepfm, entry("embedding", folded_into=target), f"{target}")


def test_folding_is_refused_in_a_model_that_declares_nothing() -> None:
    class Undeclared(DeepFM):
        folds = {}  # noqa: RUF012

    both(
        lambda: Undeclared(FIELDS, embedding_dim=T, hidden=(4,)),
        entry("embedding", folded_into="mlp.0"),
        "cannot be folded into mlp.0.*declares for nothing",
    )


def test_a_linear_layer_is_folded_into_nothing() -> None:
    both(deepfm, entry("mlp.3", folded_into="mlp.0"), "mlp.3 cannot be folded into mlp.0")


def test_tied_weights_are_refused_by_name() -> None:
    def tied() -> nn.Module:
        model = nn.ModuleDict({"embedding": nn.Embedding(9, 4), "output": nn.Linear(4, 9, bias=False)})
        model["output"].weight = model["embedding"].weight
        return model

    both(tied, entry("output"), r"output has its weight tied to embedding\.weight")
    both(tied, entry("embedding"), r"embedding has its weight tied to output\.weight")


def test_weights_in_the_same_memory_are_tied() -> None:
    def transposed() -> nn.Module:
        model = nn.Sequential(nn.Linear(4, 9), nn.Linear(9, 4))
        model[1].weight = nn.Parameter(model[0].weight.detach().T)
        return model

    both(transposed, entry("0"), r"0 has its weight tied to 1\.weight")


def test_weights_that_a_hook_makes_are_refused() -> None:
    def pruned() -> nn.Module:
        model = nn.Sequential(nn.Linear(4, 9))
        prune.l1_unstructured(model[0], "weight", 0.5)
        return model

    both(pruned, entry("0"), "0 has hooks, which a replacement would lose")


@pytest.mark.parametrize("name", ["attention.out_proj", "layer.linear1", "layer.self_attn.out_proj"])
def test_parts_whose_weights_are_read_directly_are_refused(name: str) -> None:
    def attentive() -> nn.Module:
        parts = {"attention": nn.MultiheadAttention(4, 2), "layer": nn.TransformerEncoderLayer(4, 2, 8)}
        return nn.ModuleDict(parts)

    both(attentive, entry(name), f"{name} is a part of .*reads the weights of its parts without calling them")


@pytest.mark.parametrize("name", ["0", "0.second", "1", "1.codes"])
def test_what_is_compressed_already_is_refused(name: str) -> None:
    def compressed() -> nn.Module:
        model = nn.Sequential(nn.Linear(4, 4), nn.Embedding(9, 4))
        return restructure_(model, entry("0") + entry("1"))

    both(compressed, entry(name), f"{name} is .*already compressed; start from the uncompressed model")


def test_a_plain_table_is_folded_into_nothing() -> None:
    class Declaring(nn.Sequential):
        folds = {"0": "1"}  # noqa: RUF012

    model = Declaring(nn.Embedding(9, 4), nn.Linear(4, 2))
    moments = collect_moments(model, [torch.arange(9)], ["0"])

    with pytest.raises(OptionError, match="0 cannot be folded into 1: only the fused tables"):
        compress_(model, entry("0", folded_into="1"), moments)


MISTAKES = {"unknown": "mlp.4711", "type": "mlp.1", "rank": "mlp.9", "moments": "mlp.3"}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_a_late_entry_leaves_the_model_as_it_was(mistake: str) -> None:
    model = deepfm()
    before = dict(model.named_modules())
    moments = collect(model, ["embedding", "mlp.[69]"])
    plan = entry("embedding", folded_into="mlp.0") + entry("mlp.6") + entry(MISTAKES[mistake])

    with pytest.raises(OptionError):
        compress_(model, plan, moments)

    assert dict(model.named_modules()) == before
    if mistake != "moments":
        with pytest.raises(OptionError):
            restructure_(model, plan)
        assert dict(model.named_modules()) == before


def test_an_unknown_module_is_refused_with_the_candidates() -> None:
    both(deepfm, entry("mlp.4711"), r"no module 'mlp\.4711'.*embedding, mlp\.0, mlp\.3, mlp\.6, mlp\.9")


@pytest.mark.parametrize(
    ("module", "kind"),
    [(nn.Conv1d(3, 3, 1), "Conv1d"), (nn.ReLU(), "ReLU"), (nn.LayerNorm(3), "LayerNorm")],
    ids=["convolution", "relu", "norm"],
)
def test_other_types_of_modules_are_refused_by_name(module: nn.Module, kind: str) -> None:
    both(lambda: nn.Sequential(module), entry("0"), f"0 is a {kind}, which cannot be compressed")


def test_a_layer_that_is_the_whole_model_is_refused() -> None:
    with pytest.raises(OptionError, match="wrap it"):
        restructure_(nn.Linear(3, 3), entry("", 1))


@pytest.mark.parametrize(("name", "width"), [("mlp.3", 10), ("embedding", T)])
def test_a_rank_larger_than_the_layer_is_refused(name: str, width: int) -> None:
    both(deepfm, entry(name, width + 1), f"rank {width + 1} for {name}: larger than the layer's {width}")


def test_compressing_a_table_twice_is_refused() -> None:
    both(deepfm, entry("embedding") + entry("embedding"), "already compressed")


def test_missing_moments_are_refused_by_name() -> None:
    with pytest.raises(OptionError, match=r"no moments of mlp\.3"):
        compress_(deepfm(), entry("mlp.3"), {})
    with pytest.raises(OptionError, match=r"no moments of embedding\[site\]"):
        compress_(deepfm(), entry("embedding"), {})


@pytest.mark.parametrize(("name", "key"), [("mlp.3", "mlp.3"), ("embedding", "embedding[site]")])
def test_moments_of_another_width_are_refused_by_name(name: str, key: str) -> None:
    with pytest.raises(OptionError, match=re.escape(f"the moments of {key} have width 99")):
        compress_(deepfm(), entry(name), {key: Moments.empty(99)})
