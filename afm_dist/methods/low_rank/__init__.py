"""Low rank: two thin factors for a layer, a narrow table and a projection for a table (Yu et al., KDD 2024).

The factors are the principal components of the outputs (``afm``), the same in the metric of the logit's
sensitivity (``weighted``), or the singular vectors of the weights (``svd``).
"""

from torch import nn

from afm_dist.compression.registry import (
    register_earlier_reader,
    register_facts,
    register_method,
    register_variant,
)
from afm_dist.methods.low_rank.config import LowRank
from afm_dist.methods.low_rank.embeddings import LowRankOfEmbedding, LowRankOfEmbeddingBag
from afm_dist.methods.low_rank.facts import LowRankFacts
from afm_dist.methods.low_rank.fused import LowRankOfFused
from afm_dist.methods.low_rank.linear import LowRankOfLinear
from afm_dist.methods.low_rank.variants import VARIANTS
from afm_dist.methods.low_rank.version_1 import read_version_1
from afm_dist.tables.fused import FusedEmbedding

register_method(LowRank, nn.Linear, LowRankOfLinear())
register_method(LowRank, nn.Embedding, LowRankOfEmbedding())
register_method(LowRank, nn.EmbeddingBag, LowRankOfEmbeddingBag())
register_method(LowRank, FusedEmbedding, LowRankOfFused())
register_facts(LowRank, LowRankFacts())
register_earlier_reader(1, read_version_1)
for variant in VARIANTS:
    register_variant(variant)
