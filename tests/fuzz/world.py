"""Files of every kind that is read, small and whole, and how each is read."""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import torch
from torch import nn

from afm_dist import storage
from afm_dist.checkpoint import preprocessing
from afm_dist.checkpoint.files import INDEX, check_files
from afm_dist.checkpoint.pretrained import from_pretrained, save_pretrained
from afm_dist.compression.plan import Plan, PlanEntry
from afm_dist.dataset.counts import read_counts
from afm_dist.dataset.description import Description
from afm_dist.dataset.manifest import Manifest, Shard
from afm_dist.dataset.reader import read_shard
from afm_dist.large_tables.stored import stored_tensors
from afm_dist.methods.low_rank.config import LowRank
from afm_dist.methods.rounding.config import rounding
from afm_dist.report.comparison import compare
from afm_dist.report.comparison_page import write_comparison
from afm_dist.report.finished_run import FinishedRun
from afm_dist.runs.run import Run
from afm_dist.runtime.resources import ONE_CPU
from afm_dist.search.budget import ChosenRanks
from afm_dist.search.scoring import Scored
from afm_dist.stages.evaluation import MeasuredQuality, MeasuredSpeed
from afm_dist.statistics.moments import Moments
from afm_dist.statistics.moments_file import digest_of, load_moments, save_moments
from afm_dist.statistics.partials import Partials
from afm_dist.statistics.sensitivity_file import load_sensitivity, save_sensitivity
from afm_dist.training.history import EvaluationPoint, History
from afm_dist.training.registration import REGISTERED, Registered
from afm_dist.training.state import State
from data_prep.pipeline import _Preparation, prepare
from data_prep.plan import make_plan, why_prepare
from data_prep.protocol import Protocol
from data_prep.scoring import pipeline
from data_prep.sources import tabular
from data_prep.sources.avazu import AvazuSource
from data_prep.sources.criteo import CriteoSource
from data_prep.sources.source import Source
from data_prep.sources.tabular import TabularSource
from data_prep.sources.tabular_columns import ColumnOptions
from data_prep.work import Task, Usage, WorkDirectory
from tests.data_prep.in_this_process import in_this_process
from tests.data_prep.raw_logs import avazu_text, criteo_text
from tests.data_prep.reading import read
from tests.data_prep.scoring.conftest import HEADER, clicks, write_csv
from tests.data_prep.scoring.models import train
from tests.report.example_runs import example_run, write_run

Legitimate = Callable[[Path, bytes, Any], bool]


def never(path: Path, content: bytes, found: Any) -> bool:
    """A file whose digest is known is never read with another result."""
    return False


def another_log(path: Path, content: bytes, found: Any) -> bool:
    """A raw log has no digest: with another content it is another log."""
    return True


def as_written(path: Path, content: bytes, found: Any) -> bool:
    """Plain JSON without a digest that says something else, in the right types, is an edit.

    The reader returns what it understood of the file as JSON; it has to be what a plain parser finds there.
    """
    return path.suffix == ".json" and _within(found, json.loads(content))


# What a name means that is not there: documented with the type.
FIELD = {"cardinality": 0, "mean": 0.0, "deviation": 1.0, "column": "", "transform": ""}
ENTRY = {
    "factors": "afm",
    "activation": "none",
    "kappa": 2.0,
    "folded_into": None,
    "ranks": None,
    "absorbs": None,
    "dtype": "bfloat16",
}
HISTORY = {"curve": [], "kept_step": -1, "stopped_early": False, "finished": False}
ABSENT: dict[str, Any] = {**FIELD, **ENTRY, **HISTORY}


def _within(found: Any, written: Any) -> bool:
    """Whether all that was understood is what is written; names that nobody reads may be there too."""
    if isinstance(found, dict) and isinstance(written, dict):
        return all(
            _within(item, written[key]) if key in written else key in ABSENT and item == ABSENT[key]
            for key, item in found.items()
        )
    if isinstance(found, list) and isinstance(written, list):
        return len(found) == len(written) and all(map(_within, found, written))
    return bool(found == written)


@dataclass(frozen=True, kw_only=True)
class Reader:
    """Something that reads files.

    Attributes:
        name: Of the reader.
        folder: Where its files lie; each of them may be damaged.
        read: Reads them; equal results are equal.
        legitimate: Whether a result that differs is right for the damaged file.
        pattern: Of the names of the files that are damaged.
        weight: Its share of all mutations.
        options: Whether an error may be about an option: what is read also depends on one.
    """

    name: str
    folder: Path
    read: Callable[[], Any]
    legitimate: Legitimate = never
    pattern: str = "**/*"
    weight: int = 10
    options: bool = False

    @property
    def files(self) -> list[Path]:
        """What may be damaged, in order."""
        return sorted(path for path in self.folder.glob(self.pattern) if path.is_file())


def digest(tensors: Any) -> str:
    """Of tensors by name."""
    found = hashlib.sha256()
    for name, tensor in sorted(dict(tensors).items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def plain(value: Any) -> Any:
    return json.loads(json.dumps(value))


@contextmanager
def without_ray() -> Iterator[pytest.MonkeyPatch]:
    """Tasks run here, one after the other."""
    with in_this_process() as patch:
        patch.setattr(ray, "get", lambda references: references)
        patch.setattr(pipeline, "ensure_ray", lambda **_: None)
        patch.setattr(pipeline, "task_resources", lambda _: ONE_CPU)
        yield patch


def readers(folder: Path) -> list[Reader]:
    """All readers, on files that are made in a folder."""
    return [
        *data_readers(folder),
        *model_readers(folder),
        *statistics_readers(folder),
        *training_readers(folder),
        *run_readers(folder),
        *log_readers(folder),
    ]


def data_readers(folder: Path) -> list[Reader]:
    """Datasets, shipped models, and the work directories of ``data_prep``."""
    rows = clicks(150)
    log = write_csv(folder / "clicks.csv", HEADER, rows)
    source = TabularSource([str(log)], ColumnOptions(label="click"))
    protocol = Protocol(rows_per_shard=60)
    trained = train(log, source, protocol, folder)
    data, checkpoint = folder / "data", folder / "checkpoint"
    pristine = Manifest.load(str(data))

    def described() -> Any:
        return repr(Description.of(pristine))

    def shards_and_vocabularies() -> Any:
        shards = [shard for shards in pristine.splits.values() for shard in shards]
        batches = [read_shard(pristine, shard) for shard in shards]
        found = [(batch.ids.tolist(), batch.numeric.tolist(), batch.labels.tolist()) for batch in batches]
        counts = {name: count.tolist() for name, count in read_counts(pristine).items()}
        return repr((found, counts))

    def dataset() -> Any:
        manifest = Manifest.load(str(data))
        for shard in [*manifest.vocabulary.values(), *(s for each in manifest.splits.values() for s in each)]:
            manifest.check(shard)
        return plain(manifest._to_json())

    def shipped() -> Any:
        manifest = preprocessing.load(str(checkpoint))
        for shard in manifest.vocabulary.values():
            manifest.check(shard)
        return plain(manifest._to_json()), digest(from_pretrained(str(checkpoint)).state_dict())

    def up_to_date() -> Any:
        return why_prepare(str(data), make_plan(source, protocol))

    scored = folder / "scores.parquet"
    with without_ray() as patch:
        patch.setattr(tabular.TabularSource.__init__, "__kwdefaults__", {"block_bytes": 1_000})
        trained.predict(scored, log)
        whole = pq.read_table(scored)
        scored.unlink()
        with pytest.MonkeyPatch.context() as stopped:
            stopped.setattr(pipeline, "write_result", _stop)
            with pytest.raises(Stopped):
                trained.predict(scored, log)
    work = folder / "scores.parquet.work"
    left = contents(work)

    def resumed() -> Any:
        scored.unlink(missing_ok=True)
        try:
            with without_ray() as patch:
                patch.setattr(tabular.TabularSource.__init__, "__kwdefaults__", {"block_bytes": 1_000})
                trained.predict(scored, log)
            return pq.read_table(scored).equals(whole)
        finally:
            restore(work, left)

    half = folder / "half"

    def prepared() -> Any:
        with without_ray():
            blocks = TabularSource([str(log)], ColumnOptions(label="click"), block_bytes=1_000)
            manifest = prepare(blocks, str(half), protocol)
        for file in manifest.files:
            manifest.check(file)
        return manifest.fingerprint()

    with pytest.MonkeyPatch.context() as stopped:
        stopped.setattr(_Preparation, "finish", _stop)
        with pytest.raises(Stopped):
            prepared()
    begun = contents(half)

    def gone_on() -> Any:
        try:
            return prepared()
        finally:
            restore(half, begun)

    raw = folder / "raw-to-score"
    raw.mkdir()
    (raw / "rows.csv").write_bytes(log.read_bytes())

    def scores() -> Any:
        with without_ray():
            out = folder / "own"
            out.mkdir(exist_ok=True)
            return repr(trained.scores(out, raw / "rows.csv"))

    return [
        Reader(
            name="shards and vocabularies", folder=data, read=shards_and_vocabularies, pattern="*/*.parquet"
        ),
        Reader(name="description", folder=data, read=described, pattern="vocabulary/*.parquet", weight=5),
        Reader(name="dataset", folder=data, read=dataset, legitimate=as_written, weight=30),
        Reader(name="shipped model", folder=checkpoint, read=shipped, weight=15),
        Reader(name="prepare.json", folder=data, read=up_to_date, legitimate=redone, pattern="prepare.json"),
        Reader(name="work of predict", folder=work, read=resumed, weight=3),
        # A vocabulary that is none any more is taken for somebody's file: the folder is refused.
        Reader(name="work of prepare", folder=half, read=gone_on, weight=3, options=True),
        Reader(name="rows to score", folder=raw, read=scores, legitimate=another_log, weight=3),
    ]


def contents(folder: Path) -> dict[Path, bytes]:
    """Of all files below a folder."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def restore(folder: Path, files: dict[Path, bytes]) -> None:
    """Let a folder hold these files again, and no others."""
    shutil.rmtree(folder, ignore_errors=True)
    for path, content in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


class Stopped(BaseException):
    """As if the driver had been killed."""


def _stop(*_: Any, **__: Any) -> None:
    raise Stopped


def redone(path: Path, content: bytes, found: Any) -> bool:
    """What was done is not taken for what is wanted: it is done again, and that is said."""
    return isinstance(found, str) and bool(found)


def model_readers(folder: Path) -> list[Reader]:
    """A checkpoint of several files with an index, a plan, and tensors block by block."""
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 1))
    own, plans = folder / "own-model", folder / "plans"
    save_pretrained(model, str(own), max_file_bytes=100)
    assert (own / INDEX).exists()
    entries = (
        PlanEntry("mlp.2", LowRank(factors="afm", rank=3, activation="shifted")),
        PlanEntry(
            "embedding", LowRank(factors="weighted", rank=4, ranks={"a": 4, "b": 0}, folded_into="mlp.0")
        ),
    )
    (Plan(entries=entries) + rounding("embedding")).save(str(plans / "plan.json"))

    def fresh() -> nn.Module:
        return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 1))

    def blocks() -> Any:
        # The driver, before tasks read blocks.
        check_files(str(own))
        return digest({key: each.load() for key, each in stored_tensors(str(own)).items()})

    return [
        Reader(
            name="checkpoint",
            folder=own,
            read=lambda: digest(from_pretrained(str(own), model=fresh()).state_dict()),
            weight=15,
        ),
        Reader(
            name="stored tensors",
            folder=own,
            read=blocks,
        ),
        Reader(
            name="plan",
            folder=plans,
            read=lambda: plain(Plan.load(str(plans / "plan.json")).to_json()),
            legitimate=as_written,
        ),
    ]


def statistics_readers(folder: Path) -> list[Reader]:
    """Moments, partials of a pass, and sensitivity."""
    statistics = folder / "statistics"
    generator = torch.Generator().manual_seed(0)

    def moments(width: int, weight: float | None = None) -> Moments:
        outputs = torch.randn(20, width, generator=generator, dtype=torch.float64)
        mean = outputs.mean(0)
        return Moments(count=20, mean=mean, scatter=(outputs - mean).T @ (outputs - mean), weight=weight)

    found = {"mlp.0": moments(4), "embedding[site]": moments(3, 12.5)}
    save_moments(str(statistics / "moments.safetensors"), found, fingerprint="f")
    partials = Partials(parent=str(folder / "partials"), facts={"version": 1})
    partials.begin()
    partials.commit(0, found)
    sensitivity = {name: each.scatter for name, each in found.items()}
    save_sensitivity(str(folder / "sensitivity" / "sensitivity.safetensors"), sensitivity)
    return [
        Reader(
            name="moments",
            folder=statistics,
            read=lambda: digest_of(load_moments(str(statistics / "moments.safetensors"), fingerprint="f")),
        ),
        Reader(
            name="partials",
            folder=folder / "partials",
            read=lambda: digest_of(partials.load(0)),
            pattern="*/*.safetensors",
            weight=5,
        ),
        Reader(
            name="sensitivity",
            folder=folder / "sensitivity",
            read=lambda: digest(load_sensitivity(str(folder / "sensitivity" / "sensitivity.safetensors"))),
        ),
    ]


def training_readers(folder: Path) -> list[Reader]:
    """What a training goes on from, and what it leaves."""
    training, state = folder / "training", folder / "state"
    history = History(
        curve=[EvaluationPoint(0, 0, None, 0.6, 0.5), EvaluationPoint(10, 100, 0.4, 0.7, 0.4)],
        kept_step=10,
        finished=True,
    )
    digest_of_state = State(
        step=10,
        history=history,
        losses=torch.ones(3, dtype=torch.float64),
        model={"weight": torch.arange(6.0)},
        optimizer={"weight/m": torch.ones(6)},
    ).write(str(state), candidate="baseline")
    Registered(
        candidate="baseline",
        step=10,
        kept_step=10,
        threads=1,
        device="cpu",
        digest=digest_of_state,
        workers=2,
        exchange="exact",
        exchange_digests=["", ""],
        attempt="a1",
        checkpoint="checkpoint_000001",
    ).write(str(training))
    storage.write_sealed_json(str(training / "history.json"), history.to_json())

    def resumed() -> Any:
        found = State.read(str(state), candidate="baseline", step=10, digest=digest_of_state)
        tensors = {**found.model, **found.optimizer, "losses": found.losses}
        return {"history": found.history.to_json(), "step": found.step}, digest(tensors)

    return [
        Reader(
            name="registered",
            folder=training,
            read=lambda: vars(Registered.read(str(training))),
            pattern=REGISTERED,
        ),
        Reader(
            name="history",
            folder=training,
            read=lambda: History.read(str(training / "history.json")).to_json(),
            legitimate=as_written,
            pattern="history.json",
        ),
        Reader(
            name="state",
            folder=state,
            read=resumed,
        ),
    ]


def run_readers(folder: Path) -> list[Reader]:
    """Markers and results of stages, receipts of tasks, and finished runs that are compared."""
    place = folder / "run"
    made: list[str] = []

    def stage() -> Any:
        made.clear()
        run = Run(str(place), job="compress", config={"rate": 0.5})
        done = run.stage("train", lambda path: made.append(path), config={"rate": 0.5, "sizes": [1, 2]})
        return "done again" if made else done.commit

    stage()
    markers = folder / "run" / "train"

    def committed(path: Path, content: bytes, found: Any) -> bool:
        return found == "done again" or found == json.loads(content)["commit"]

    def restored() -> Any:
        kept = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
        try:
            return stage()
        finally:
            for path, content in kept.items():
                path.write_bytes(content)

    receipts = folder / "receipts"
    plan = {"version": 1, "source": "x", "fields": [], "inputs": []}

    def work() -> Any:
        with without_ray():
            directory = WorkDirectory(str(receipts), plan, keep=True, usage=Usage())
            if not directory.resumed:
                directory.begin()
            tasks = [
                Task(key="0", function=_shard, arguments=(), result=tuple[Shard, dict[str, int]]),
                Task(key="1", function=_none, arguments=(), result=int | None),
            ]
            (shard, unknown), none = directory.run("encode", "encoding", tasks)
            return plain([[vars(shard), unknown], none])

    work()

    single, several, other = folder / "single", folder / "several", folder / "other"
    write_run(example_run(str(single)), single)
    write_run(example_run(str(several), seeds=(0, 1)), several)
    write_run(example_run(str(other)), other)

    def comparison(*runs: Path) -> Callable[[], Any]:
        def read() -> Any:
            content = compare(
                [FinishedRun.read(str(run)) for run in (*runs, other)], allow_different_data=True
            )
            write_comparison(content, str(folder / "comparison"))
            return repr(content)

        return read

    results = folder / "results"
    row = example_run("x").first["rows"][0]
    quality = {
        key: row[key] for key in ("name", "stage", "auc", "log_loss", "reliability", "parameters", "bytes")
    }
    speed = {"rows_per_second": 10.5, "ratio": 1.0, "ratio_min": 0.9, "ratio_max": 1.1}
    ranks = {
        "ranks": {"mlp.2": 3, "embedding": {"a": 1}},
        "bytes": 10,
        "error": 0.1,
        "errors": {"mlp.2": 0.1},
    }
    scored = {
        "name": "afm",
        "method": "afm",
        "plan": Plan().to_json(),
        "ranks": {},
        "bytes": 1,
        "parameters": 1,
    }
    kinds: dict[str, tuple[Any, Any]] = {
        "quality": (list[MeasuredQuality], [{**quality, "calibration": 1.0, "calibration_error": 0.1}]),
        "speed": (MeasuredSpeed, {"batch_size": 10, "threads": 1, "structures": {"a": speed}}),
        "ranks": (ChosenRanks, {"budget": 100, **ranks, "chosen": "a", "tried": [{"name": "a", **ranks}]}),
        "points": (list[Scored], [{**scored, "auc": 0.7}]),
    }
    for name, (_, content) in kinds.items():
        storage.write_json(str(results / f"{name}.json"), content)

    def result_of(name: str) -> Callable[[], Any]:
        return lambda: plain(storage.read_json(str(results / f"{name}.json"), kinds[name][0]))

    return [
        Reader(name="markers of a stage", folder=markers, read=restored, legitimate=committed, weight=5),
        Reader(name="receipts", folder=receipts, read=work),
        Reader(name="run to compare", folder=single, read=comparison(single), legitimate=compared, weight=5),
        Reader(
            name="run of seeds to compare",
            folder=several,
            read=comparison(several),
            legitimate=compared,
            weight=3,
        ),
        *(
            Reader(
                name=f"results: {name}",
                folder=results,
                read=result_of(name),
                legitimate=as_written,
                pattern=f"{name}.json",
                weight=4,
            )
            for name in kinds
        ),
    ]


def compared(path: Path, content: bytes, found: Any) -> bool:
    """A finished run has no digest: with other figures, in the right types, it is another run."""
    return path.suffix == ".json"


def _shard() -> Any:
    return {"path": "train/part-00000.parquet", "rows": 3, "bytes": 10, "sha256": "0" * 64}, {"site": 1}


def _none() -> None:
    return None


def log_readers(folder: Path) -> list[Reader]:
    """Raw logs in every format and compression."""
    text = "".join(",".join(row) + "\n" for row in [HEADER, *clicks(60)]).encode()
    quoted = text.replace(b"u1,", b'"u ""1""\n",')
    table = pl.read_csv(text, infer_schema_length=None)
    criteo, avazu = criteo_text(30).encode(), avazu_text(30).encode()
    parquet = folder / "table.parquet"
    table.write_parquet(parquet)

    def tabular_source(path: str) -> Source:
        return TabularSource([path], ColumnOptions(label="click"))

    def criteo_source(path: str) -> Source:
        return CriteoSource([path])

    def avazu_source(path: str) -> Source:
        return AvazuSource([path])

    logs: dict[str, tuple[bytes, Callable[[str], Source], int]] = {
        "csv": (text, tabular_source, 10),
        "quoted csv": (quoted, tabular_source, 10),
        "tsv": (text.replace(b",", b"\t"), tabular_source, 5),
        "csv in gzip": (gzip.compress(text, mtime=0), tabular_source, 10),
        "csv in zstd": (pa.compress(text, codec="zstd", asbytes=True), tabular_source, 10),
        "parquet": (parquet.read_bytes(), tabular_source, 15),
        "criteo": (criteo, criteo_source, 5),
        "criteo in gzip": (gzip.compress(criteo, mtime=0), criteo_source, 5),
        "avazu": (avazu, avazu_source, 5),
        "avazu in zstd": (pa.compress(avazu, codec="zstd", asbytes=True), avazu_source, 5),
    }
    found = []
    for name, (content, opened, weight) in logs.items():
        place = folder / "logs" / name.replace(" ", "-")
        place.mkdir(parents=True)
        (place / "log").write_bytes(content)

        def rows(opened: Callable[[str], Source] = opened, path: str = str(place / "log")) -> Any:
            with without_ray():
                return repr(read(opened(path)))

        found.append(
            Reader(
                name=f"log: {name}",
                folder=place,
                read=rows,
                legitimate=another_log,
                weight=weight,
                options=True,
            )
        )
    return found
