"""Compress a trained CTR model: the framework of Yu et al., KDD 2024, as a Ray job.

python jobs/compress.py                                                   # the demo
python jobs/compress.py --data DATA --checkpoint RUN/checkpoint --output RUN2
python jobs/compress.py --data DATA --checkpoint RUN/checkpoint --output RUN2 --sweep
python jobs/compress.py --data DATA --checkpoint RUN/checkpoint --output RUN2 --schedule after-control
python jobs/compress.py --data DATA --model dcnv2 --output RUN --seeds 0,1,2
python jobs/compress.py --data DATA --checkpoint RUN/checkpoint --output RUN2 --methods afm,svd,weighted
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from afm_dist import storage
from afm_dist.errors import ReportError
from afm_dist.runs.run import Run, Stage, check_output
from afm_dist.runtime import console
from jobs.compress_options import Compress, check, parse_seeds

if TYPE_CHECKING:
    from afm_dist.pipelines.step import Step
    from afm_dist.search.search import Search
    from jobs.compress_request import Job


def main(config: Compress) -> None:
    """Run the job, for one seed or several."""
    check(config)
    subject = f"a synthetic log of {config.demo_rows:,} rows" if config.demo else config.data
    console.info(f"afm-dist compress: {subject}")
    # torch and Ray take seconds to import: after the first line.
    from afm_dist.runtime.cluster import check_paths

    check_paths(data=config.data, checkpoint=config.checkpoint, output=config.run_directory)
    if config.seeds is None:
        compress(config)
    else:
        compress_seeds(config, parse_seeds(config.seeds))


def compress(config: Compress) -> None:
    """List the steps, see that they can be done here, and do them."""
    from afm_dist.pipelines.context import Context
    from afm_dist.pipelines.step import Pipeline
    from afm_dist.planning.capacity import admit
    from afm_dist.planning.show import show
    from afm_dist.runtime.machine import work_in_driver
    from afm_dist.training.fit import WorkerGroup
    from jobs.compress_request import Job

    job = Job.of(config)
    steps = paper_order if job.schedule == "paper" else at_once
    pipeline = Pipeline(steps(job, job.search()))
    costs = job.costs()
    plan = costs.plan(pipeline.estimates(costs), output=config.run_directory)
    if config.dry_run:
        show(plan, check=config.resources.capacity_check)
        return
    admit(plan.left(), check=config.resources.capacity_check)
    work_in_driver()
    pipeline.run(
        Context(
            run=Run(config.run_directory, job="compress", config=asdict(config), resume=config.resume),
            dataset=job.dataset,
            group=WorkerGroup(
                workers=config.workers,
                options=config.resources,
                checkpoint_minutes=config.checkpoint_minutes,
            ),
        )
    )


def paper_order(job: Job, search: Search) -> list[Step[Any]]:
    """List the steps of the paper: the MLP, a round of fine-tuning, the tables, another round."""
    from afm_dist.stages.compression import LinearStatistics, RewriteLinears, RewriteTables, TableStatistics
    from afm_dist.stages.evaluation import EvaluateModels, MeasureThroughput
    from afm_dist.stages.reporting import WriteReport
    from afm_dist.stages.searching import SearchPlans
    from afm_dist.stages.sensitivity import linear_sensitivity, table_sensitivity
    from afm_dist.stages.sequential import statistics_behind
    from afm_dist.stages.shipping import Reporting, Ship
    from afm_dist.stages.training import FineTune, Model, TrainScratch

    # The uncompressed model, and what becomes of it: sizes that are given, or that a budget buys.
    baseline = job.baseline()
    model, variants, absorb = Model(baseline, "baseline"), job.variants, search.rows.absorb
    moments = LinearStatistics(model=model)
    found = SearchPlans(search=search, model=model, statistics=moments)

    # The MLP (paper, section 3.2): moments of the outputs, two thin layers for a wide one, one round
    # of fine-tuning. The control is the uncompressed model with the same round; who learns from soft
    # labels learns from it as it enters the round.
    linear_needs = linear_sensitivity(model, variants)
    behind = statistics_behind(model, moments, found, variants)
    low_rank = RewriteLinears(
        model=model,
        statistics=moments,
        found=found,
        variants=variants,
        sensitivity=linear_needs,
        behind=behind,
        settings=job.settings,
    )
    tuned = FineTune(
        stage="finetune-mlp",
        control="control-mlp",
        uncompressed=model,
        compressed=low_rank,
        count=low_rank.count,
        recipe=job.rounds[0],
    )

    # The tables (section 3.3): moments of each field, narrow tables with projections, folded into the
    # first linear layer; another round of fine-tuning. On request the first-order weights are one more
    # coordinate of their rows.
    table_moments = TableStatistics(
        tuned=tuned, variants=variants, stream_check=job.config.stream_check, absorb=absorb
    )
    table_needs = table_sensitivity(tuned, variants, absorb=absorb)
    narrow = RewriteTables(
        tuned=tuned,
        statistics=table_moments,
        found=found,
        variants=variants,
        sensitivity=table_needs,
        rows=search.rows,
    )
    final = FineTune(
        stage="finetune-embedding",
        control="control",
        uncompressed=Model(tuned, "control-mlp"),
        compressed=narrow,
        count=len(variants),
        recipe=job.rounds[1],
    )

    # What was trained ships before anything is reported of it. Then the evidence; on request with the
    # same small model, never large.
    shipped = Ship(models=final, compressed=narrow, found=found, rule=job.ship)
    scratch = TrainScratch(like=Model(narrow, job.structure.tables), recipe=job.training)
    extra: list[Step[Any]] = [scratch] if job.scratch else []
    report = WriteReport(
        **job.heading,
        baseline=baseline,
        found=found,
        low_rank=low_rank,
        tuned=tuned,
        statistics=table_moments,
        narrow=narrow,
        final=final,
        shipped=shipped,
        scratch=scratch if job.scratch else None,
    )
    made: list[Step[Any]] = [baseline, low_rank, tuned, narrow, final, *extra]
    rows = 3 + 2 * low_rank.count + 2 * len(variants) + len(extra)
    report.quality = EvaluateModels(subjects=report.subjects, inputs=made, count=rows)
    # The variants have one structure.
    report.throughput = MeasureThroughput(subjects=report.subjects, inputs=made, structures=4 + job.settings)
    measured: list[Step[Any]] = [*extra, report.quality, report.throughput]
    needs: list[Step[Any]] = [step for step in (linear_needs, behind) if step is not None]
    first: list[Step[Any]] = [job.dataset, baseline, moments, found, *needs, low_rank, tuned]
    second: list[Step[Any]] = [table_moments, *table_needs.values(), narrow, final, shipped]
    return [*first, *second, Reporting(steps=measured, report=report, shipped=shipped)]


def at_once(job: Job, search: Search) -> list[Step[Any]]:
    """List the steps of compressing the MLP and the tables together, before one round of fine-tuning.

    After the control's first round, which both share; of a sweep, straight after training.
    """
    from afm_dist.search.grid import GridSearch
    from afm_dist.stages.compression import LinearStatistics, RewriteAtOnce, StatisticsAtOnce
    from afm_dist.stages.evaluation import EvaluateModels, MeasureThroughput
    from afm_dist.stages.report_at_once import WriteReportAtOnce
    from afm_dist.stages.scoring_points import ScorePoints
    from afm_dist.stages.searching import SearchPlans, StageOf
    from afm_dist.stages.sequential import statistics_behind
    from afm_dist.stages.shipping import Reporting, Ship
    from afm_dist.stages.training import FineTune, Model, TrainScratch

    # The best uncompressed model there is: what a round still teaches it, a small model would learn worse.
    baseline, grid = job.baseline(), search if isinstance(search, GridSearch) else None
    model, before = Model(baseline, "baseline"), None
    if job.schedule == "after-control":
        before = FineTune(
            stage="finetune-control", control="control-mlp", uncompressed=model, recipe=job.rounds[0]
        )
        model = Model(before, "control-mlp")

    # What becomes of it: of a sweep the best of many sizes, scored before fine-tuning.
    moments = LinearStatistics(model=model)
    found = SearchPlans(search=search, model=model, statistics=moments)
    variants = job.variants
    known = StatisticsAtOnce(model=model, statistics=moments, variants=variants, absorb=search.rows.absorb)
    behind = None if grid else statistics_behind(model, moments, found, variants)
    rewritten = RewriteAtOnce(
        model=model,
        found=found,
        known=StageOf(found) if grid else known,
        count=len(grid.ratios) if grid else len(variants),
        stage="rewrite-sweep" if grid else "rewrite",
        variants=None if grid else variants,
        behind=behind,
        rows=search.rows,
    )

    # One round of fine-tuning, beside the control; then the evidence.
    tuned = FineTune(
        stage="finetune-sweep" if grid else "finetune",
        control="control",
        uncompressed=model,
        compressed=rewritten,
        count=rewritten.count,
        recipe=job.rounds[1],
    )
    shipped = Ship(models=tuned, compressed=rewritten, found=found, rule=job.ship)
    measured = ScorePoints(grid=grid, model=model, found=found) if grid else None
    wanted = job.scratch and not grid
    scratch = TrainScratch(like=Model(rewritten, job.structure.tables), recipe=job.training)
    report = WriteReportAtOnce(
        **job.heading,
        baseline=baseline,
        before=before,
        found=found,
        rewritten=rewritten,
        tuned=tuned,
        shipped=shipped,
        measured=measured,
        scratch=scratch if wanted else None,
    )
    report.quality = EvaluateModels(subjects=report.subjects, inputs=report.models, count=report.count)
    report.throughput = MeasureThroughput(
        subjects=report.subjects, inputs=report.models, structures=rewritten.count + 1
    )
    extra: list[Step[Any]] = [step for step in (measured, scratch if wanted else None) if step is not None]
    first: list[Step[Any] | None] = [job.dataset, baseline, before, moments, found]
    second: list[Step[Any] | None] = [None if grid else known, behind, rewritten, tuned, shipped]
    evidence = [*extra, report.quality, report.throughput]
    return [
        *(step for step in (*first, *second) if step is not None),
        Reporting(steps=evidence, report=report, shipped=shipped),
    ]


def compress_seeds(config: Compress, seeds: Sequence[int]) -> None:
    """A run for each seed, and what they amount to."""
    from afm_dist.stages.shipping import reporting
    from jobs.compress_request import parse_methods

    # One model for all seeds, so that there is a mean.
    config = replace(config, ship=config.ship or parse_methods(config.methods)[0][0].tables)
    output = config.run_directory
    folders = {seed: storage.join(output, f"seed-{seed}") for seed in seeds}
    # Before the seeds: a folder with other files is refused before hours of work.
    check_output(output, job="compress")
    run = None if config.dry_run else Run(output, job="compress", config=asdict(config), resume=config.resume)
    unreported: list[int] = []
    for seed, folder in folders.items():
        console.info(f"seed {seed}:")
        try:
            compress(replace(config, seed=seed, seeds=None, output=folder))
        except ReportError as error:
            # The other seeds do not need it.
            console.warn(f"seed {seed}: {error}")
            unreported.append(seed)
    if run is None:
        return
    with reporting(run, *(storage.join(folder, "checkpoint") for folder in folders.values())):
        if unreported:
            raise ReportError(f"that of seed {', '.join(map(str, unreported))} is missing, see above")
        print_over_seeds(run, folders)


def print_over_seeds(run: Run, folders: Mapping[int, str]) -> None:
    """Write and print what the runs of several seeds amount to.

    Args:
        run: The run directory that holds them.
        folders: Run directory of each seed.
    """
    from afm_dist import report

    reports = {seed: storage.join(folder, "report", "report.json") for seed, folder in folders.items()}
    made = [
        Stage.external(f"seed-{seed}", location, storage.file_sha256(location))
        for seed, location in reports.items()
    ]
    content = report.over_seeds({seed: report.read_report(location) for seed, location in reports.items()})
    written = run.stage("report", lambda folder: report.write_seeds_report(content, folder), inputs=made)
    console.out.print(report.seeds_table(content))
    console.info(report.sentence(content))
    console.info(f"report:     {written.file('report.html')}")


if __name__ == "__main__":
    console.run_job(Compress, main)
