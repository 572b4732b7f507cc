"""afm-dist: low-rank compression of CTR models as a distributed, out-of-core, restartable job."""

__version__ = "0.1.0"
