"""Put finished compressions side by side: one page over several runs of jobs/compress.py.

python jobs/compare.py RUN RUN … --output compare
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from tyro.conf import Positional

from afm_dist.errors import OptionError
from afm_dist.runs.run import Resume
from afm_dist.runtime import console


@dataclass(kw_only=True)
class Compare:
    """Put finished compressions side by side."""

    runs: Positional[tuple[str, ...]]
    """Run directories of jobs/compress.py, two or more; those of --sweep and --seeds too."""
    output: str = "compare"
    """Where the comparison goes: a folder, or a URI."""
    allow_different_data: bool = False
    """Take runs on different datasets too, each dataset in a section of its own."""
    resume: Resume = "auto"
    """'never': write it again even if nothing changed."""


def main(config: Compare) -> None:
    """Run the job."""
    if len(config.runs) < 2:
        given = console.counted(len(config.runs), "run")
        raise OptionError(f"{given}: name two or more run directories of jobs/compress.py")
    console.info(f"afm-dist compare: {', '.join(config.runs)}")
    from afm_dist import storage
    from afm_dist.report.comparison import compare
    from afm_dist.report.comparison_page import sentence, table, write_comparison
    from afm_dist.report.finished_run import FinishedRun
    from afm_dist.runs.run import Run, Stage
    from afm_dist.runtime.cluster import check_paths

    check_paths(output=config.output)
    for location in config.runs:
        check_paths(runs=location)
    content = compare(
        [FinishedRun.read(location) for location in config.runs],
        allow_different_data=config.allow_different_data,
    )

    def work(folder: str) -> None:
        write_comparison(content, folder)

    run = Run(config.output, job="compare", config=asdict(config), resume=config.resume)
    made = Stage.external("runs", "", storage.fingerprint(content))
    written = run.stage("report", work, inputs=[made])
    console.out.print(table(content))
    console.info(sentence(content))
    console.info(f"report:     {written.file('report.html')}")


if __name__ == "__main__":
    console.run_job(Compare, main)
