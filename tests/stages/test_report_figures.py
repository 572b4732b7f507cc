"""Whatever spectrum a layer or a field has, the figures that are made of it are ones a report may show."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from afm_dist.compression.plan import TABLE, Plan, PlanEntry
from afm_dist.methods.low_rank.config import FACTORS, Factors, LowRank
from afm_dist.methods.low_rank.facts import LowRankFacts
from afm_dist.report import validated
from afm_dist.report.html import blocks_to_html
from afm_dist.report.markdown import to_markdown
from afm_dist.report.page import document
from afm_dist.report.size_sections import embeddings, linear_layers
from afm_dist.stages.report_parts import layers
from afm_dist.statistics.keys import field_key
from afm_dist.statistics.moments import Moments, moments_of_table
from afm_dist.statistics.spectrum import Spectrum, eigendecompose
from afm_dist.statistics.statistics import Statistics
from tests.report.example import example_report

SCALES = (0.0, 1e-160, 1e-20, 1e-6, 1.0, 1e6, 1e19)


@st.composite
def fields(draw: st.DrawFn, width: int) -> Moments:
    """Of one id to a few, counted rarely or often; some all alike, some far from zero."""
    generator = np.random.default_rng(draw(st.integers(0, 2**31)))
    ids = draw(st.integers(1, 9))
    mean = generator.normal(size=width) * draw(st.sampled_from(SCALES))
    rows = mean + generator.normal(size=(ids, width)) * draw(st.sampled_from(SCALES))
    counts = torch.from_numpy(generator.integers(0, draw(st.sampled_from([2, 5, 1000])), ids))
    counts[0] += 1
    return moments_of_table(torch.from_numpy(rows), counts)


@st.composite
def linear_outputs(draw: st.DrawFn, width: int) -> Moments:
    """Of one row to many; combinations of few inputs."""
    generator = np.random.default_rng(draw(st.integers(0, 2**31)))
    inputs = generator.normal(size=(draw(st.integers(1, 40)), draw(st.integers(1, width))))
    outputs = torch.from_numpy(
        inputs @ generator.normal(size=(inputs.shape[1], width)) * draw(st.sampled_from(SCALES))
    )
    centred = outputs - outputs.mean(0)
    return Moments(count=len(outputs), mean=outputs.mean(0), scatter=centred.T @ centred)


def sensitivity(generator: np.random.Generator, width: int) -> Tensor:
    gradients = generator.normal(size=(3, width)) * generator.choice([0, 1e-3, 1], width)
    return torch.from_numpy(gradients.T @ gradients)


@st.composite
def compressed(draw: st.DrawFn) -> tuple[Statistics, Plan]:
    """A table of some fields, each with a rank from 0 to full, and a linear layer; by any method."""
    width, wide = draw(st.integers(1, 8)), draw(st.integers(1, 12))
    names = [f"C{i}" for i in range(draw(st.integers(1, 4)))]
    moments = {field_key(TABLE, name): draw(fields(width)) for name in names}
    moments["mlp.3"] = draw(linear_outputs(wide))
    generator = np.random.default_rng(draw(st.integers(0, 2**31)))
    sensitivities = {key: sensitivity(generator, item.width) for key, item in moments.items()}
    ranks = {name: draw(st.integers(0, width)) for name in names}
    method = draw(st.sampled_from(FACTORS))
    entries = [
        PlanEntry("mlp.3", LowRank(factors=method, rank=draw(st.integers(1, wide)))),
        PlanEntry(TABLE, LowRank(factors=method, rank=1).with_rank(ranks)),
    ]
    return Statistics(moments, sensitivities), Plan(entries=tuple(entries))


def report_of(known: Statistics, plan: Plan) -> dict[str, Any]:
    return {**example_report(), "layers": layers(known, plan)}


@given(compressed())
@settings(max_examples=300, deadline=None)
def test_every_spectrum_makes_a_report_that_validates(drawn: tuple[Statistics, Plan]) -> None:
    known, plan = drawn

    report = validated(report_of(known, plan))

    for layer in report["layers"]:
        # Singular vectors are those of the weights: of them no spectrum is shown.
        assert ("rank" in layer) == (layer["method"] != "svd")
        if layer.get("rank") == layer["width"]:
            assert layer["kept_energy"] == 1.0
    to_markdown(document(report))


@given(compressed())
@settings(max_examples=15, deadline=None)
def test_every_spectrum_can_be_drawn(drawn: tuple[Statistics, Plan]) -> None:
    report = validated(report_of(*drawn))

    assert "<svg" in blocks_to_html([*linear_layers(report), *embeddings(report)])


@given(st.lists(st.sampled_from([0.0, 5e-324, 1e-16, 1e-8, 0.1, 1 / 3, 1.0, 3.0, 1e8, 1e300]), min_size=1))
@settings(max_examples=300)
def test_kept_energy_is_a_share_that_grows_with_the_rank_and_ends_at_all(values: list[float]) -> None:
    eigenvalues = torch.tensor(sorted(values, reverse=True), dtype=torch.float64)
    width = len(values)
    zeros = torch.zeros(width, dtype=torch.float64)
    spectrum = Spectrum(mean=zeros, eigenvalues=eigenvalues, eigenvectors=torch.eye(width), rank_deficiency=0)

    kept = [spectrum.kept_energy(rank) for rank in range(width + 1)]

    assert all(0 <= one <= 1 and math.copysign(1, one) > 0 for one in kept)
    assert kept == sorted(kept)
    # Where nothing but zeros is left out, all is kept.
    assert all(kept[rank] == 1 for rank in range(width + 1) if not eigenvalues[rank:].any())


def test_small_fields_at_a_rank_that_keeps_everything_keep_no_more() -> None:
    """As the ranks by field are that a budget gives."""
    generator = np.random.default_rng(0)
    for _ in range(400):
        ids = int(generator.integers(2, 10))
        rows, shares = generator.normal(size=(ids, 16)), generator.dirichlet(np.ones(ids))
        mean = shares @ rows
        scatter = (rows - mean).T @ ((rows - mean) * shares[:, None]) * 1000
        moments = Moments(count=1000, mean=torch.from_numpy(mean), scatter=torch.from_numpy(scatter))
        spectrum = eigendecompose(moments)
        kept = [spectrum.kept_energy(rank) for rank in range(17)]
        assert kept == sorted(kept)
        assert max(kept) == kept[16] == 1.0


@pytest.mark.parametrize("method", ["afm", "weighted"])
def test_kept_variance_grows_with_the_rank_by_every_method_of_the_outputs(method: Factors) -> None:
    generator = np.random.default_rng(3)
    for _ in range(50):
        mixing = generator.normal(size=(4, 4)) * 10.0 ** generator.uniform(-2, 2, (4, 1))
        moments = Moments(
            count=7, mean=torch.zeros(4, dtype=torch.float64), scatter=torch.from_numpy(mixing @ mixing.T)
        )
        known = Statistics({"layer": moments}, {"layer": sensitivity(generator, 4)})
        kept = [
            LowRankFacts().kept_share("layer", LowRank(factors=method, rank=rank), known)
            for rank in range(1, 5)
        ]
        assert kept == sorted(kept)
        assert kept[0] > 0 and kept[-1] == 1.0
