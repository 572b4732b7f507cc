"""Quantisation: codes of few bits in place of rows, and codebooks or scales that say what they stand for."""

from torch import nn

from afm_dist.compression.registry import register_facts, register_method, register_variant
from afm_dist.methods.quantization.config import Quantization
from afm_dist.methods.quantization.embeddings import QuantizationOfEmbedding, QuantizationOfEmbeddingBag
from afm_dist.methods.quantization.facts import QuantizationFacts
from afm_dist.methods.quantization.first_order import QuantizationOfFirstOrder
from afm_dist.methods.quantization.table import QuantizationOfFused
from afm_dist.methods.quantization.variants import VARIANTS
from afm_dist.tables.first_order import LinearTerm
from afm_dist.tables.fused import FusedEmbedding

register_method(Quantization, FusedEmbedding, QuantizationOfFused())
register_method(Quantization, nn.Embedding, QuantizationOfEmbedding())
register_method(Quantization, nn.EmbeddingBag, QuantizationOfEmbeddingBag())
register_method(Quantization, LinearTerm, QuantizationOfFirstOrder())
register_facts(Quantization, QuantizationFacts())
for variant in VARIANTS:
    register_variant(variant)
