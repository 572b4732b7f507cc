"""Measure performance: rows a second of the parts that take the time, each against a reference.

python jobs/benchmark.py training
python jobs/benchmark.py inference --shape criteo --json inference.json
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import tyro

from afm_dist.errors import OptionError
from afm_dist.runtime import console

if TYPE_CHECKING:
    from jobs.benchmarks.result import Result


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Measure performance. What is compared runs in turn; ratios are those of the same round."""

    suite: tyro.conf.Positional[
        Literal["prepare", "statistics", "pass", "training", "inference", "metrics", "tables"]
    ]
    """prepare: raw log to shards to batches. statistics: moments of the layers, one thread. pass: the
    statistics pass on Ray, all cores. training: DeepFM with lazily updated tables. inference: DeepFM before
    and after compression, by threads, batch and runtime. metrics: AUC, log loss, calibration, one thread.
    tables: jobs/compress_tables.py against copying the checkpoint, and its resident memory (Linux)."""
    json: str | None = None
    """Also write the figures to this file."""
    rounds: int = 7
    """Rounds that count."""
    rows: int = 3_000_000
    """prepare, pass: rows of the log. metrics: rows scored."""
    peers_python: str | None = None
    """prepare, training: interpreter of an environment with the extra 'peers', to compare with FuxiCTR."""
    vocabulary: int | None = None
    """pass, training, inference, tables: ids of all fields; training compares with a tenth of them. Without
    it 10,000,000; inference: as many as the log of its shape has."""
    hidden: tuple[int, ...] = (400, 400, 400)
    """statistics, pass, training: widths of the MLP's hidden layers."""
    avazu_hidden: tuple[int, ...] = (2000, 2000, 2000)
    """statistics: the same in Avazu's shape."""
    shape: Literal["criteo", "avazu"] = "criteo"
    """inference: the log whose fields, ids, layers and ranks are those of Yu et al. (KDD 2024)."""
    batch_sizes: tuple[int, ...] = (1, 100, 10_000)
    """inference: rows of a batch; each is measured."""
    runtimes: tuple[Literal["eager", "form", "compiled", "onnx"], ...] = ("eager", "form", "compiled", "onnx")
    """inference: the model in eager PyTorch; its form for inference in eager PyTorch, compiled, and in ONNX
    Runtime, if that is installed (extra 'onnx')."""
    precision: Literal["float32", "bfloat16", "int8"] = "float32"
    """inference: of the tables of the forms for inference."""
    threads: int | None = None
    """training, inference: threads of PyTorch; without it all cores, inference: one and all."""
    quick: bool = False
    """Tiny sizes and one round: shows that the suites run; the figures mean nothing."""

    @property
    def small(self) -> Benchmark:
        """The same with tiny sizes."""
        narrow = (16, 16, 16)
        return replace(
            self,
            rounds=1,
            rows=2_000,
            vocabulary=20_000,
            hidden=narrow,
            avazu_hidden=narrow,
            batch_sizes=(1, 100),
            threads=1,
        )


def main(config: Benchmark) -> None:
    """Run the job."""
    check(config)
    console.info(f"afm-dist benchmark: {config.suite}")
    if config.suite == "inference":
        # A server has its processors to itself: threads wait as is OpenMP's default, not as jobs ask for.
        # It is read when torch is loaded.
        os.environ.pop("OMP_WAIT_POLICY", None)
    # torch and Ray take seconds to import: after the first line.
    from afm_dist import storage
    from afm_dist.runtime.cluster import check_paths
    from jobs.benchmarks.result import table

    check_paths(json=config.json)
    results = measure(config.small if config.quick else config)
    console.out.print(table(results))
    if config.json:
        storage.write_json(config.json, [asdict(result) for result in results])


def check(config: Benchmark) -> None:
    """Refuse options that cannot work.

    Raises:
        OptionError: names the option and the fix.
    """
    for option in ("rounds", "rows", "vocabulary", "threads"):
        value = getattr(config, option)
        if value is not None and value < 1:
            raise OptionError(f"--{option.replace('_', '-')} {value}: must be at least 1")
    for option in ("batch_sizes", "runtimes"):
        if not getattr(config, option):
            raise OptionError(f"--{option.replace('_', '-')}: names none; give one or more, or leave it out")
    if min(config.batch_sizes) < 1:
        raise OptionError(f"--batch-sizes {min(config.batch_sizes)}: a batch has at least one row")
    for option in ("hidden", "avazu_hidden"):
        widths = getattr(config, option)
        if len(widths) < 3:
            name = option.replace("_", "-")
            raise OptionError(f"--{name} {' '.join(map(str, widths))}: the suites need three layers")


def measure(config: Benchmark) -> list[Result]:
    """The figures of a suite."""
    import torch

    if config.threads is not None:
        torch.set_num_threads(config.threads)
    batch_size = 100 if config.quick else 10_000
    vocabulary = config.vocabulary or 10_000_000
    if config.suite == "prepare":
        from jobs.benchmarks import preparation

        return preparation.run(rows=config.rows, rounds=config.rounds, peers_python=config.peers_python)
    if config.suite == "statistics":
        from jobs.benchmarks import layer_statistics

        rows = batch_size if config.quick else 8192
        shapes = [layer_statistics.criteo(config.hidden), layer_statistics.avazu(config.avazu_hidden)]
        return layer_statistics.run(shapes, batch_size=rows, rounds=config.rounds)
    if config.suite == "pass":
        from jobs.benchmarks import statistics_pass

        return statistics_pass.run(
            rows=config.rows, vocabulary=vocabulary, hidden=config.hidden, rounds=config.rounds
        )
    if config.suite == "metrics":
        from jobs.benchmarks import metrics

        return metrics.run(rows=config.rows, rounds=config.rounds)
    if config.suite == "tables":
        from jobs.benchmarks import large_tables

        return large_tables.run(vocabulary=vocabulary, rounds=config.rounds)
    if config.suite == "training":
        from jobs.benchmarks import training, training_peers

        sizes: dict[str, Any] = {
            "hidden": config.hidden,
            "batch_sizes": (batch_size // 10, batch_size),
            "rows_per_run": 2 * batch_size,
            "rounds": config.rounds,
        }
        fewer = vocabulary // 10
        own = training.run(vocabularies=(fewer, vocabulary), **sizes)
        return own + training_peers.run(vocabulary=fewer, peers_python=config.peers_python, **sizes)
    from jobs.benchmarks import inference, inference_models

    shape = {"criteo": inference_models.CRITEO, "avazu": inference_models.AVAZU}[config.shape]
    if config.quick:
        shape = replace(shape, hidden=config.hidden, mlp_rank=4)
    all_threads = torch.get_num_threads()
    return inference.run(
        shape if config.vocabulary is None else replace(shape, vocabulary=config.vocabulary),
        batch_sizes=config.batch_sizes,
        threads=(all_threads,) if config.threads is not None else tuple(sorted({1, all_threads})),
        runtimes=config.runtimes,
        precision=config.precision,
        rounds=config.rounds,
    )


if __name__ == "__main__":
    console.run_job(Benchmark, main)
