"""The README's lines for machines of your own, run on this one: a head, a second node, submitted jobs."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from afm_dist import storage
from tests.jobs.commands import ROOT
from tests.jobs.conftest import SMALLER, Compressed, compress_command, write_clicks
from tests.jobs.own_ray import OwnRay, own_ray

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]


def cluster_commands() -> list[list[str]]:
    """The commands of the README's block for machines of your own, in order."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (block,) = [text for text in re.findall(r"```bash\n(.*?)```", readme, re.DOTALL) if "ray start" in text]
    lines = block.replace("\\\n", " ").splitlines()
    words = [shlex.split(line, comments=True) for line in lines]
    return [line for line in words if line and line[0] != "export"]


@pytest.fixture(scope="module")
def cluster() -> Iterator[OwnRay]:
    """A head and a further node as the README starts them, with one CPU each."""
    token, head, node, _ = cluster_commands()
    assert head[:3] == ["ray", "start", "--head"]
    assert node[:2] == ["ray", "start"]
    with own_ray() as ray:
        ray.run(token[: token.index(">")])
        ray.start(head, cpus=1)
        ray.start(node, cpus=1)
        yield ray


def test_submitted_compression_gives_what_a_local_one_gives(
    cluster: OwnRay, compressed: Compressed, tmp_path_factory: pytest.TempPathFactory
) -> None:
    output = str(tmp_path_factory.mktemp("submitted") / "compressed")
    submit = cluster_commands()[-1]
    end = submit.index("--") + 1
    assert shlex.join(submit[:end]) == "ray job submit --address http://HEAD:8265 --working-dir . --"
    entrypoint = submit[end:]
    placed = {
        "/shared/clicks": compressed.data,
        "/shared/baseline/checkpoint": f"{compressed.trained}/checkpoint",
        "/shared/compressed": output,
    }
    command = [placed.pop(word, word) for word in entrypoint]
    assert not placed
    assert command == ["python", *compress_command(compressed.data, compressed.trained, output)[:7]]

    result = cluster.submit("python", *compress_command(compressed.data, compressed.trained, output))

    assert result.returncode == 0, result.stdout + result.stderr
    assert "starting a local Ray" not in result.stdout
    for stage in ("statistics-mlp", "rewrite-mlp"):
        results = _contents(f"{output}/{stage}")
        assert results == _contents(f"{compressed.output}/{stage}")
        assert results


def _contents(folder: str) -> dict[str, str]:
    """Digest of the tensors or the bytes of each result below a folder, by its name.

    Not of a file of tensors: safetensors writes what is said about them in any order.
    """
    results = {path for kind in ("safetensors", "parquet") for path in Path(folder).rglob(f"*.{kind}")}
    return {str(path.relative_to(folder)): _digest(path) for path in results}


def _digest(path: Path) -> str:
    if path.suffix != ".safetensors":
        return storage.file_sha256(str(path))
    tensors = load_file(path)
    return storage.fingerprint(
        {name: [str(value.dtype), storage.sha256(value.tobytes())] for name, value in tensors.items()}
    )


def test_relative_path_is_refused_with_an_explanation(cluster: OwnRay) -> None:
    result = cluster.submit("python", "jobs/prepare.py", "--source", "synthetic", "--output", "data/clicks")
    assert result.returncode == 1  # Ray's own code for any failure; the log has the job's
    assert "--output data/clicks: relative path under 'ray job submit'" in result.stdout
    assert "failed with exit code 2" in result.stdout
    assert "Traceback" not in result.stdout


@pytest.mark.parametrize(
    ("environment", "refusal"),
    [
        ({"RAY_AUTH_TOKEN": "of-somebody-else"}, "Invalid authentication token"),
        ({"RAY_AUTH_MODE": "disabled"}, "Missing authentication token"),
    ],
)
def test_nobody_submits_without_the_token(cluster: OwnRay, environment: dict[str, str], refusal: str) -> None:
    result = cluster.submit("python", "jobs/evaluate.py", "--help", **environment)
    assert result.returncode == 1
    assert refusal in result.stderr
    assert "submitted successfully" not in result.stdout + result.stderr


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_everything_on_two_nodes_gives_what_it_gives_on_one(
    cluster: OwnRay, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """With as many training workers of one thread each: on the cluster, each has a node of its own."""
    folder = tmp_path_factory.mktemp("everywhere")
    write_clicks(folder / "clicks.csv")

    def commands(place: str) -> list[list[str]]:
        data, trained, output = (str(folder / place / name) for name in ("data", "trained", "compressed"))
        source = ["--source", "tabular", "--input", str(folder / "clicks.csv"), "--label", "click"]
        return [
            ["jobs/prepare.py", *source, "--output", data, *SMALLER["prepare"]],
            ["jobs/train.py", "--data", data, "--output", trained, *SMALLER["train"], "--workers", "2"],
            [*compress_command(data, trained, output), "--workers", "2"],
            ["jobs/evaluate.py", "--data", data, "--checkpoint", f"{output}/checkpoint"],
        ]

    with own_ray() as alone:
        token, head, *_ = cluster_commands()
        alone.run(token[: token.index(">")])
        alone.start(head, cpus=2)
        for ray, place in ((alone, "here"), (cluster, "there")):
            for command in commands(place):
                result = ray.submit("python", *command)
                assert result.returncode == 0, result.stdout + result.stderr

    here, there = (_contents(str(folder / place)) for place in ("here", "there"))
    assert {"trained/checkpoint/model.safetensors", "compressed/checkpoint/model.safetensors"} <= set(here)
    for name in here:
        assert there[name] == here[name], name
