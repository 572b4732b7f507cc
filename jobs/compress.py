"""Compress a trained CTR model: the framework of Yu et al., KDD 2024, as a Ray job.

python jobs/compress.py                                                   # the demo
python jobs/compress.py --data DATA --checkpoint RUN/checkpoint --output RUN2
python jobs/compress.py --data DATA --checkpoint RUN/checkpoint --output RUN2 --sweep
python jobs/compress.py --data DATA --model dcnv2 --output RUN --seeds 0,1,2
python jobs/compress.py --data DATA --checkpoint RUN/checkpoint --output RUN2 --methods afm,svd,weighted
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from afm_dist import storage
from afm_dist.errors import ReportError
from afm_dist.runs.run import Run, Stage, check_output
from afm_dist.runtime import console
from afm_dist.stages.methods import AFM, parse_methods
from afm_dist.training.recipe import Recipe, check_checkpoint_minutes, preset
from jobs.compress_demo import demo_dataset
from jobs.compress_options import (
    Compress,
    baseline_recipe,
    check,
    parse_seeds,
    policies,
    recipes,
    sweep_of,
    warn_of_rounds,
)
from jobs.compress_plan import model_config, plan, planned_model

if TYPE_CHECKING:
    from afm_dist.dataset.manifest import Manifest
    from afm_dist.stages.sweep import Sweep
    from afm_dist.stages.training import Models


def main(config: Compress) -> None:
    """Run the job, for one seed or several."""
    check(config)
    subject = f"a synthetic log of {config.demo_rows:,} rows" if config.demo else config.data
    console.say(f"afm-dist compress: {subject}")
    # torch and Ray take seconds to import: after the first line.
    from afm_dist.runtime.cluster import check_paths

    check_paths(data=config.data, checkpoint=config.checkpoint, output=config.run_directory)
    if config.seeds is None:
        compress(config)
    else:
        compress_seeds(config, parse_seeds(config.seeds))


def compress(config: Compress) -> None:
    """The paper's algorithm, stage by stage."""
    from afm_dist.compression.budget import parse_bytes
    from afm_dist.dataset.labels import Labels, check_labels, warn_of_undefined
    from afm_dist.planning.capacity import admit
    from afm_dist.planning.show import show
    from afm_dist.runtime.cluster import check_workers
    from afm_dist.runtime.machine import work_in_driver
    from afm_dist.stages import (
        budget,
        compression,
        evaluation,
        reporting,
        saving_ranks,
        scratch,
        sensitivity,
        sequential,
        shipping,
        training,
    )

    check_workers(config.workers)
    check_checkpoint_minutes(config.checkpoint_minutes)
    chosen = preset(config.preset)
    methods = parse_methods(config.methods)
    mlp, embedding = policies(config, chosen)
    first, second = recipes(config, chosen)
    warn_of_rounds(config, (first, second))
    output = config.run_directory
    check_output(output, job="compress")
    described = model_config(config, chosen)
    compression.check_ranks(described, mlp, embedding, config.rows, checkpoint=config.checkpoint)
    if not (config.budgeted or config.sweep):
        saving_ranks.warn_of_useless_ranks(described, mlp, embedding, config.rows)
    described, rows = planned_model(config, chosen, described)
    if not config.demo:
        check_labels(rows)
        warn_of_undefined(Labels.of(rows, "test"))
    target = budget.Target(
        bytes=None if config.target_bytes is None else parse_bytes(config.target_bytes),
        ratio=config.target_ratio,
        activation=config.activation,
        kappa=config.kappa,
        rows=config.rows,
        field_ranks=config.field_ranks,
        refine=config.refine_ranks == "on",
    )
    if config.budgeted:
        budget.check_target(described, config.checkpoint, target)
    asked = sweep_of(config).of(described) if config.sweep else None
    planned = plan(config, chosen, described, rows, config.compares_modes, asked)
    if config.dry_run:
        show(planned, check=config.resources.capacity_check)
        return
    admit(planned.left(), check=config.resources.capacity_check)
    work_in_driver()

    title = f"{described.architecture} on {config.data or 'the synthetic demo'}"
    run = Run(output, job="compress", config=asdict(config), resume=config.resume)
    data, manifest = demo_dataset(run, config) if config.demo else training.external_dataset(str(config.data))
    if config.demo:
        check_labels(manifest)

    # The uncompressed model.
    baseline = (
        training.external_baseline(config.checkpoint, manifest)
        if config.checkpoint
        else training.train_baseline(
            run,
            data,
            manifest,
            architecture=config.model,
            hyper_parameters=chosen.hyper_parameters,
            recipe=baseline_recipe(config, chosen),
            workers=config.workers,
            checkpoint_minutes=config.checkpoint_minutes,
            options=config.resources,
        )
    )

    # The MLP (paper, section 3.2): moments of the outputs, two thin layers for a wide one, one round
    # of fine-tuning. The control is the uncompressed model with the same round; who learns from soft
    # labels learns from it as it enters the round.
    linear_moments = compression.linear_statistics(run, data, manifest, baseline, options=config.resources)
    if asked is not None:
        compress_by_sweep(run, config, data, manifest, baseline, linear_moments, asked, second, title)
        return
    ranks = None
    if config.budgeted:
        ranks = budget.choose_ranks(
            run, data, manifest, baseline, linear_moments, target, options=config.resources
        )
        mlp, embedding = ranks.linears, ranks.tables
    felt = sensitivity.linear_sensitivity(run, data, manifest, baseline, methods)
    in_turn = sequential.statistics_in_turn(
        run,
        data,
        manifest,
        baseline,
        linear_moments,
        methods,
        policy=mlp,
        activation=config.activation,
        kappa=config.kappa,
        options=config.resources,
    )
    low_rank = compression.rewrite_linears(
        run,
        baseline,
        linear_moments,
        methods=methods,
        sensitivity=felt,
        in_turn=in_turn,
        policy=mlp,
        activation=config.activation,
        kappa=config.kappa,
        ablation=config.compares_modes,
    )
    tuned = training.finetune(
        run,
        "finetune-mlp",
        data,
        manifest,
        {"control-mlp": baseline.checkpoints["baseline"], **low_rank.checkpoints},
        inputs=[baseline.stage, low_rank.stage],
        recipe=first,
        workers=config.workers,
        teacher=baseline.checkpoints["baseline"],
        checkpoint_minutes=config.checkpoint_minutes,
        options=config.resources,
    )

    # The tables (section 3.3): moments of each field, narrow tables with projections, folded into the
    # first linear layer; another round of fine-tuning. On request the first-order weights are one more
    # coordinate of their rows.
    table_moments = compression.table_statistics(
        run,
        data,
        manifest,
        tuned,
        methods=methods,
        stream_check=config.stream_check,
        absorb=config.rows.absorb,
        options=config.resources,
    )
    table_felt = sensitivity.table_sensitivity(run, data, manifest, tuned, methods, absorb=config.rows.absorb)
    narrow = compression.rewrite_tables(
        run,
        tuned,
        table_moments,
        methods=methods,
        sensitivity=table_felt,
        policy=embedding,
        rows=config.rows,
        budget=None if ranks is None else ranks.budget,
    )
    final = training.finetune(
        run,
        "finetune-embedding",
        data,
        manifest,
        {"control": tuned.checkpoints["control-mlp"], **narrow.checkpoints},
        inputs=[tuned.stage, narrow.stage],
        recipe=second,
        workers=config.workers,
        teacher=tuned.checkpoints["control-mlp"],
        checkpoint_minutes=config.checkpoint_minutes,
        options=config.resources,
    )

    # What was trained ships before anything is reported of it.
    shipped = shipping.ship(run, data, manifest, final, AFM.tables)

    # The evidence; on request with the same small model, never large.
    with shipping.reporting(run, shipped.path):
        small = scratch.train_scratch(
            run,
            data,
            manifest,
            narrow,
            methods,
            recipe=baseline_recipe(config, chosen),
            workers=config.workers,
            checkpoint_minutes=config.checkpoint_minutes,
            options=config.resources,
        )
        subjects = reporting.subjects_of(baseline, low_rank, tuned, narrow, final, methods, small)
        made = [baseline.stage, low_rank.stage, tuned.stage, narrow.stage, final.stage]
        made += [] if small is None else [small.stage]
        quality = evaluation.evaluate(run, data, manifest, subjects, inputs=made, options=config.resources)
        speed = evaluation.throughput(run, data, manifest, subjects, inputs=made)
        report = reporting.write_report(
            run,
            reporting.Evidence(
                manifest=manifest,
                baseline=baseline,
                linear_statistics=linear_moments,
                linear_rewrite=low_rank,
                linear_finetune=tuned,
                table_statistics=table_moments,
                table_rewrite=narrow,
                table_finetune=final,
                linear_recipe=first,
                table_recipe=second,
                subjects=subjects,
                quality=quality,
                throughput=speed,
                ablation=config.compares_modes,
                ranks=ranks,
                methods=methods,
                scratch=small,
                table_sensitivity=table_felt.get(AFM.name),
            ),
            title=title,
            config=asdict(config),
        )
        shipping.attach_card(run, shipped, report)
        reporting.say_result(run, report, shipped)


def compress_seeds(config: Compress, seeds: Sequence[int]) -> None:
    """A run for each seed, and what they amount to."""
    from afm_dist.stages.shipping import reporting

    output = config.run_directory
    folders = {seed: storage.join(output, f"seed-{seed}") for seed in seeds}
    # Before the seeds: a folder with other files is refused before hours of work.
    check_output(output, job="compress")
    run = None if config.dry_run else Run(output, job="compress", config=asdict(config), resume=config.resume)
    unreported: list[int] = []
    for seed, folder in folders.items():
        console.say(f"seed {seed}:")
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
        say_over_seeds(run, folders)


def say_over_seeds(run: Run, folders: Mapping[int, str]) -> None:
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
    console.say(report.sentence(content))
    console.say(f"report:     {written.file('report.html')}")


def compress_by_sweep(
    run: Run,
    config: Compress,
    data: Stage,
    manifest: Manifest,
    baseline: Models,
    linear_moments: Stage,
    asked: Sweep,
    recipe: Recipe,
    title: str,
) -> None:
    """Many ranks before fine-tuning, then the best of a few sizes after it, beside the control."""
    from afm_dist.stages import evaluation, reporting, shipping, sweep, sweep_report, training

    tried = sweep.try_ranks(run, data, manifest, baseline, linear_moments, asked, options=config.resources)
    chosen = sweep.rewrite_chosen(run, baseline, tried, asked)
    tuned = training.finetune(
        run,
        "finetune-sweep",
        data,
        manifest,
        {"control": baseline.checkpoints["baseline"], **chosen.checkpoints},
        inputs=[baseline.stage, chosen.stage],
        recipe=recipe,
        workers=config.workers,
        teacher=baseline.checkpoints["baseline"],
        checkpoint_minutes=config.checkpoint_minutes,
        options=config.resources,
    )
    best = sweep.worth_shipping(tuned, chosen)
    shipped = shipping.ship(run, data, manifest, tuned, best)
    with shipping.reporting(run, shipped.path):
        measured = sweep.measure_points(run, data, manifest, baseline, tried, options=config.resources)
        subjects = sweep_report.sweep_subjects(baseline, chosen, tuned)
        made = [baseline.stage, chosen.stage, tuned.stage]
        quality = evaluation.evaluate(run, data, manifest, subjects, inputs=made, options=config.resources)
        speed = evaluation.throughput(run, data, manifest, subjects, inputs=made)
        report = sweep_report.write_sweep_report(
            run,
            sweep_report.SweepEvidence(
                manifest=manifest,
                baseline=baseline,
                tried=tried,
                measured=measured,
                chosen=chosen,
                tuned=tuned,
                recipe=recipe,
                subjects=subjects,
                quality=quality,
                throughput=speed,
                shipped=best,
            ),
            title=title,
            config=asdict(config),
        )
        shipping.attach_card(run, shipped, report)
        reporting.say_result(run, report, shipped)


if __name__ == "__main__":
    console.run_job(Compress, main)
