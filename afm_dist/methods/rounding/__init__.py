"""Rounding: the rows of tables in bfloat16, two bytes a number instead of four."""

from torch import nn

from afm_dist.compression.registry import register_earlier_reader, register_facts, register_method
from afm_dist.methods.rounding.config import Rounding, read_version_1
from afm_dist.methods.rounding.facts import RoundingFacts
from afm_dist.methods.rounding.rows import RoundedRows

register_method(Rounding, nn.Module, RoundedRows())
register_facts(Rounding, RoundingFacts())
register_earlier_reader(1, read_version_1)
