"""The parts of a record that run jobs: every model, every method, every option that changes a result."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import polars as pl

from tests.data_prep.raw_logs import avazu_text, criteo_text
from tests.frozen.bench import COMPRESS, EVERY_METHOD, MODELS, ONE_EVALUATION, RANKS, SHIP, TRAIN, Bench
from tests.frozen.library import LIBRARY
from tests.frozen.log import write_log
from tests.frozen.served import export, serving

Part = Callable[[Bench], None]
TWO = ("--methods", "afm,svd")

# jobs/prepare.py ------------------------------------------------------------------------------------


def prepared_clicks(bench: Bench) -> None:
    """The dataset that all others are made from."""
    bench.note_folder(bench.data())


def prepared(*options: str, source: str = "tabular", files: tuple[str, ...] = ("clicks.csv",)) -> Part:
    """Another preparation."""

    def part(bench: Bench) -> None:
        inputs = [_input(bench, name) for name in files]
        label = ("--label", "click") if source == "tabular" else ()
        output = bench.path(f"data/{source}-{'-'.join(files)}-{'-'.join(options)}".replace("/", "_"))
        given = ("--input", *inputs) if inputs else ()
        bench.job("prepare", "--source", source, *given, *label, "--output", output, *options)
        bench.note_folder(output)

    return part


def _input(bench: Bench, name: str) -> Path:
    path = bench.path(name)
    if path.exists():
        return path
    match path.stem, path.suffix:
        case "criteo", _:
            path.write_text(criteo_text(1_500, seed=3), encoding="utf-8")
        case "avazu", _:
            path.write_text(avazu_text(1_500, seed=3), encoding="utf-8")
        case _, ".parquet":
            pl.read_csv(bench.path("clicks.csv")).write_parquet(path)
        case "malformed", _:
            text = bench.path("clicks.csv").read_text(encoding="utf-8")
            path.write_text(
                text + "2,2024-05-14,u1,a1,s1,h1,20\n1,u1,a1\n0,2024-05-14,u1,a1,s1,h1,old\n",
                encoding="utf-8",
            )
        case _:
            write_log(path, 1_000, seed=len(name))
    return path


# jobs/train.py --------------------------------------------------------------------------------------


def trained(model: str) -> Part:
    """A baseline, which the parts that compress it share."""
    return lambda bench: bench.note_folder(bench.trained(model))


def training(name: str, *options: str, model: str = "deepfm") -> Part:
    """A training with other options."""

    def part(bench: Bench) -> None:
        output = bench.path(f"trained/{name}")
        bench.job("train", "--data", bench.data(), "--model", model, "--output", output, *TRAIN, *options)
        bench.note_folder(output)

    return part


def without_numbers(bench: Bench) -> None:
    """A dataset of categories alone: prepared, trained, compressed."""
    data, model, output = (bench.path(f"no-numbers/{name}") for name in ("data", "model", "compressed"))
    log = bench.path("clicks.csv")
    bench.job(
        "prepare",
        *("--source", "tabular", "--input", log, "--label", "click", "--drop", "age", "--output", data),
    )
    bench.job("train", "--data", data, "--model", "dcnv2", "--output", model, *TRAIN)
    bench.job(
        "compress",
        *("--data", data, "--checkpoint", model / "checkpoint", "--output", output, *COMPRESS, *SHIP, *RANKS),
    )
    bench.note_folder(data.parent)


# jobs/compress.py and jobs/compress_tables.py ---------------------------------------------------------


def compressed(name: str, *options: str, model: str = "deepfm") -> Part:
    """A run with everything that its stages leave: moments, sensitivity, plans, weights, the report."""
    return lambda bench: bench.note_folder(bench.compressed(name, *options, model=model))


def by_every_method(model: str) -> Part:
    """The run of a model that the parts of serving, scoring and evaluation share."""
    return lambda bench: bench.note_folder(bench.by_every_method(model))


def tables(model: str, dim: int = 2) -> Part:
    """Tables larger than memory."""

    def part(bench: Bench) -> None:
        output = bench.path(f"tables/{model}")
        bench.job(
            "compress_tables",
            *("--data", bench.data(), "--checkpoint", bench.trained(model) / "checkpoint"),
            *("--embedding-dim", dim, "--output", output),
        )
        bench.note_folder(output)

    return part


# jobs/evaluate.py and jobs/predict.py -----------------------------------------------------------------


def evaluated(bench: Bench) -> None:
    """Figures of the shipped checkpoint, on two splits."""
    shipped = bench.by_every_method("deepfm") / "checkpoint"
    for split in ("validation", "test"):
        figures = bench.path(f"evaluated/{split}.json")
        bench.job(
            "evaluate",
            *("--data", bench.data(), "--checkpoint", shipped, "--split", split, "--json", figures),
            *("--use-gpu", "never"),
        )
        bench.note_file(figures, figures.name)


def predicted(bench: Bench) -> None:
    """Raw rows, some malformed, scored by the shipped checkpoint."""
    shipped = bench.by_every_method("deepfm") / "checkpoint"
    for name in ("malformed.csv", "clicks.parquet"):
        scores = bench.path(f"predicted/{name}.parquet")
        bench.job(
            "predict",
            *("--checkpoint", shipped, "--input", _input(bench, name), "--output", scores),
            *("--keep", "user", "--use-gpu", "never"),
        )
        table = pl.read_parquet(scores)
        for column in table.columns:
            bench.note_json(f"{name}:{column}", table[column].to_list())
        # What the files are called depends on the folder.
        for i, rejected in enumerate(sorted(Path(f"{scores}.rejected").glob("*.jsonl"))):
            bench.note_file(rejected, f"{name} rejected {i}")


def predicted_criteo(bench: Bench) -> None:
    """Criteo's text: prepared, trained on, scored."""
    data, model, scores = (bench.path(f"criteo/{name}") for name in ("data", "model", "scores.parquet"))
    log = _input(bench, "criteo.txt")
    bench.job("prepare", "--preset", "criteo-x4", "--threshold", "4", "--input", log, "--output", data)
    bench.job("train", "--data", data, "--model", "dcn", "--output", model, *TRAIN)
    bench.job(
        "predict",
        *("--checkpoint", model / "checkpoint", "--input", log, "--output", scores, "--use-gpu", "never"),
    )
    bench.note_folder(data.parent)


PARTS: dict[str, Part] = {
    "prepare/clicks": prepared_clicks,
    "prepare/parquet": prepared("--rows-per-shard", "900", files=("clicks.parquet",)),
    "prepare/bad-rows": prepared("--max-bad-rows", "0.01", files=("malformed.csv",)),
    "prepare/kinds": prepared("--categorical", "age", "--drop", "site", "--threshold", "1"),
    "prepare/last-file": prepared(
        *("--split-by", "last-file", "--validation-share", "0.5", "--test-share", "0.5"),
        files=("day_1.csv", "day_2.csv", "day_10.csv"),
    ),
    "prepare/column": prepared(
        *(
            "--split-by",
            "column",
            "--split-column",
            "day",
            "--validation-from",
            "2024-05-12",
            "--test-from",
            "2024-05-13",
        )
    ),
    "prepare/criteo": prepared(source="criteo", files=("criteo.txt",)),
    "prepare/criteo-x4": prepared("--preset", "criteo-x4", source="criteo", files=("criteo.txt",)),
    "prepare/avazu-x4": prepared("--preset", "avazu-x4", source="avazu", files=("avazu.csv",)),
    "prepare/synthetic": prepared("--rows", "2000", source="synthetic", files=()),
    "prepare/synthetic-avazu": prepared("--rows", "2000", "--shape", "avazu", source="synthetic", files=()),
    **{f"train/{model}": trained(model) for model in MODELS},
    "train/adagrad": training(
        "adagrad",
        *("--table-optimizer", "adagrad", "--table-learning-rate", "0.05", "--table-l2", "1e-4"),
        *(
            "--l2",
            "1e-4",
            "--clip-norm",
            "0.5",
            "--plateau-factor",
            "0.5",
            "--seed",
            "3",
            "--evaluations-per-epoch",
            "4",
        ),
    ),
    "train/reset-tables": training("reset-tables", "--epochs", "3", "--reset-tables", model="dcnv2"),
    "train/patience": training(
        "patience",
        *("--epochs", "4", "--patience", "2", "--dropout", "0", "--evaluations-per-epoch", "4"),
        model="nfm",
    ),
    "train/no-numbers": without_numbers,
    **{f"compress/{model}": by_every_method(model) for model in MODELS},
    "compress/once": lambda bench: bench.note_folder(bench.evaluated_once()),
    "compress/relu-modes": compressed("relu-modes", *RANKS, "--ablation", "on", "--kappa", "1"),
    "compress/relu-none": compressed("relu-none", *RANKS, *TWO, "--activation", "none", model="dlrm"),
    "compress/relu-plain": compressed("relu-plain", *RANKS, *TWO, "--activation", "plain", model="gdcn"),
    "compress/energy": compressed("energy", "--mlp-energy", "0.9", "--embedding-dim", "3", "--stream-check"),
    "compress/bytes-uniform": compressed(
        *("bytes-uniform", "--target-bytes", "20kB", "--field-ranks", "uniform", "--refine-ranks", "off"),
        *ONE_EVALUATION,
    ),
    "compress/ratio-each": compressed("ratio-each", "--target-ratio", "1.8", *EVERY_METHOD),
    "compress/ratio-each-predicted": compressed(
        "ratio-each-predicted", "--target-ratio", "1.3", "--refine-ranks", "off", model="fibinet"
    ),
    "compress/ratio-uniform": compressed(
        "ratio-uniform", "--target-ratio", "1.8", "--field-ranks", "uniform", model="dcnv2"
    ),
    "compress/absorb": compressed("absorb", *RANKS, "--linear-terms", "absorb", *EVERY_METHOD),
    "compress/absorb-nfm": compressed(
        "absorb-nfm", *RANKS, "--linear-terms", "absorb", *TWO, *ONE_EVALUATION, model="nfm"
    ),
    "compress/absorb-budget": compressed(
        "absorb-budget", "--linear-terms", "absorb", "--target-ratio", "1.9", model="autoint"
    ),
    "compress/bfloat16": compressed("bfloat16", *RANKS, "--linear-terms", "bfloat16", "--codes", "bfloat16"),
    "compress/codes": compressed("codes", *RANKS, *TWO, "--codes", "bfloat16", *ONE_EVALUATION, model="dcn"),
    "compress/bfloat16-budget": compressed(
        *("bfloat16-budget", "--target-ratio", "2", "--codes", "bfloat16"),
        *("--linear-terms", "absorb", "--field-ranks", "each"),
    ),
    "compress/sweep": compressed("sweep", "--sweep", "--sweep-ratios", "1.5,1.9"),
    "compress/sweep-uniform": compressed(
        *("sweep-uniform", "--sweep", "--field-ranks", "uniform", "--sweep-ranks", "4,8"),
        *("--sweep-dims", "2,4", "--linear-terms", "absorb", "--codes", "bfloat16"),
        model="dcnv2",
    ),
    "compress/distill": compressed(
        "distill", *RANKS, *TWO, "--distill", "0.5", "--distill-temperature", "2", model="dcnv2"
    ),
    "compress/dense": compressed("dense", *RANKS, *TWO, "--finetune-weights", "dense"),
    "compress/factors": compressed("factors", *RANKS, *TWO, "--finetune-weights", "factors"),
    "compress/average": compressed(
        *("average", *RANKS, *TWO, "--finetune-average", "--finetune-epochs", "2"),
        *("--finetune-patience", "3", "--finetune-learning-rate", "0.002"),
    ),
    "compress/seeds": compressed("seeds", *RANKS, "--seeds", "0,1"),
    "tables/deepfm": tables("deepfm"),
    "tables/dlrm": tables("dlrm", 3),
    "tables/fibinet": tables("fibinet"),
    "tables/nfm": tables("nfm"),
    "evaluate/deepfm": evaluated,
    "predict/clicks": predicted,
    "predict/criteo": predicted_criteo,
    **{f"serving/{model}": serving(model) for model in MODELS},
    "serving/once": serving("dcnv2", Bench.evaluated_once),
    "export/torch-export": export("torch-export", "model.pt2"),
    "export/onnx": export("onnx", "model.onnx"),
    **{f"library/{name}": part for name, part in LIBRARY.items()},
}

# With Ray Train itself, its workers and their sums of gradients.
ON_RAY_TRAIN: dict[str, Part] = {
    "workers/one": training("workers-one", "--workers", "1"),
    "workers/two": training("workers-two", "--workers", "2"),
}
