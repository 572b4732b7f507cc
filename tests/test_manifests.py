"""The files that run a job elsewhere: checked for what they say, as nothing here can run them all."""

from __future__ import annotations

import copy
import re
import shlex
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import tyro
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from jobs.compress import Compress, check

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
SLURM = ROOT / "jobs" / "slurm.sbatch"

# The fields of KubeRay 1.7's ray.io/v1 resources (its CRD reference), as far as a job like ours has use
# for them: what is not among them, KubeRay would drop without a word.
FIELDS = {
    "RayJobSpec": {
        *("activeDeadlineSeconds", "backoffLimit", "deletionStrategy", "entrypoint", "entrypointNumCpus"),
        *("entrypointNumGpus", "entrypointResources", "jobId", "managedBy", "metadata"),
        *("preRunningDeadlineSeconds", "rayClusterSpec", "runtimeEnvYAML", "shutdownAfterJobFinishes"),
        *("submissionMode", "submitterConfig", "submitterPodTemplate", "suspend", "ttlSecondsAfterFinished"),
    },
    "RayClusterSpec": {
        *("authOptions", "autoscalerOptions", "enableInTreeAutoscaling", "gcsFaultToleranceOptions"),
        *("headGroupSpec", "headServiceAnnotations", "managedBy", "networkPolicy", "rayVersion", "suspend"),
        *("tlsOptions", "upgradeStrategy", "workerGroupSpecs"),
    },
    "AuthOptions": {"mode", "secretName"},
    "AutoscalerOptions": {
        *("args", "command", "env", "envFrom", "idleTimeoutSeconds", "image", "imagePullPolicy"),
        *("resources", "securityContext", "upscalingMode", "version", "volumeMounts"),
    },
    "HeadGroupSpec": {
        *("enableIngress", "headService", "ingressOptions", "labels", "rayStartParams", "resources"),
        *("serviceType", "template"),
    },
    "WorkerGroupSpec": {
        *("groupName", "idleTimeoutSeconds", "labels", "maxReplicas", "minReplicas", "numOfHosts"),
        *("priority", "rayStartParams", "replicas", "resources", "scaleStrategy", "suspend", "template"),
    },
}


@pytest.fixture
def rayjob() -> dict[str, Any]:
    job: dict[str, Any] = yaml.safe_load((ROOT / "jobs" / "rayjob.yaml").read_text(encoding="utf-8"))
    return job


def groups(rayjob: dict[str, Any]) -> list[dict[str, Any]]:
    cluster = rayjob["spec"]["rayClusterSpec"]
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def containers(rayjob: dict[str, Any]) -> list[dict[str, Any]]:
    return [one for group in groups(rayjob) for one in group["template"]["spec"]["containers"]]


def test_the_ray_job_has_only_fields_that_kuberay_knows(rayjob: dict[str, Any]) -> None:
    spec = rayjob["spec"]
    cluster = spec["rayClusterSpec"]
    head, *workers = groups(rayjob)
    assert (rayjob["apiVersion"], rayjob["kind"]) == ("ray.io/v1", "RayJob")
    assert set(rayjob) == {"apiVersion", "kind", "metadata", "spec"}
    assert set(spec) <= FIELDS["RayJobSpec"]
    assert set(cluster) <= FIELDS["RayClusterSpec"]
    assert set(cluster["authOptions"]) <= FIELDS["AuthOptions"]
    assert set(cluster["autoscalerOptions"]) <= FIELDS["AutoscalerOptions"]
    assert set(head) <= FIELDS["HeadGroupSpec"]
    for worker in workers:
        assert set(worker) <= FIELDS["WorkerGroupSpec"]


def test_kubernetes_accepts_the_pods_of_the_ray_job(rayjob: dict[str, Any]) -> None:
    for group in groups(rayjob):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "any"}, **group["template"]}
        kubernetes_validate.validate(pod, kubernetes_validate.latest_version(), strict=True)
    broken = copy.deepcopy(pod)
    broken["spec"]["containers"][0]["resouces"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="resouces"):
        kubernetes_validate.validate(broken, kubernetes_validate.latest_version(), strict=True)


def test_the_ray_job_ends_its_cluster_and_itself(rayjob: dict[str, Any]) -> None:
    spec = rayjob["spec"]
    assert spec["shutdownAfterJobFinishes"] is True
    assert 0 < spec["ttlSecondsAfterFinished"] < spec["activeDeadlineSeconds"]
    assert 1 <= spec["backoffLimit"] <= 5
    assert spec["suspend"] is False


def test_the_ray_cluster_grows_and_its_head_takes_no_tasks(rayjob: dict[str, Any]) -> None:
    cluster = rayjob["spec"]["rayClusterSpec"]
    head, cpu, gpu = groups(rayjob)
    assert cluster["enableInTreeAutoscaling"] is True
    assert cluster["authOptions"] == {"mode": "token"}
    assert head["rayStartParams"]["num-cpus"] == "0"
    assert 1 <= cpu["minReplicas"] == cpu["replicas"] < cpu["maxReplicas"]
    assert gpu["minReplicas"] == gpu["replicas"] < gpu["maxReplicas"]
    (container,) = gpu["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"


def test_every_pod_has_bounds_the_image_and_the_volume(rayjob: dict[str, Any]) -> None:
    assert len({container["image"] for container in containers(rayjob)}) == 1
    for container in containers(rayjob):
        resources = container["resources"]
        assert {"cpu", "memory", "ephemeral-storage"} <= set(resources["limits"])
        assert resources["requests"] == resources["limits"]
        assert {"name": "shared", "mountPath": "/shared"} in container["volumeMounts"]
    for group in groups(rayjob):
        (volume,) = group["template"]["spec"]["volumes"]
        assert volume["name"] == "shared"
        assert volume["persistentVolumeClaim"]["claimName"]
        assert group["template"]["spec"]["securityContext"]["runAsNonRoot"] is True


def test_the_entrypoint_is_a_job_with_options_it_has_and_paths_on_the_volume(rayjob: dict[str, Any]) -> None:
    program, flag, module, *arguments = shlex.split(rayjob["spec"]["entrypoint"])
    assert (program, flag, module) == ("python", "-m", "jobs.compress")
    config = tyro.cli(Compress, args=arguments)
    check(config)
    for path in (config.data, config.checkpoint, config.output):
        assert path is not None
        assert path.startswith("/shared/")


def test_all_manifests_have_the_same_ray_which_the_package_accepts(rayjob: dict[str, Any]) -> None:
    cluster = yaml.safe_load((ROOT / "cluster.yaml").read_text(encoding="utf-8"))
    (base,) = re.findall(r"^FROM (.+)$", DOCKERFILE, re.MULTILINE)
    assert base == cluster["docker"]["image"]
    tag = re.fullmatch(r"rayproject/ray:([\d.]+)-py(\d)(\d+)-cpu", base)
    assert tag is not None
    assert tag[1] == rayjob["spec"]["rayClusterSpec"]["rayVersion"]
    requirements = {(one := Requirement(text)).name: one for text in PROJECT["dependencies"]}
    assert tag[1] in requirements["ray"].specifier
    assert f"{tag[2]}.{tag[3]}" in SpecifierSet(PROJECT["requires-python"])


def test_the_image_stays_the_user_it_came_with() -> None:
    instructions = re.findall(r"^([A-Z]+) (.*)$", DOCKERFILE, re.MULTILINE)
    assert {name for name, _ in instructions} <= {"FROM", "ENV", "RUN", "WORKDIR", "COPY", "ARG"}
    assert all(rest.startswith("--chown=ray:users ") for name, rest in instructions if name == "COPY")
    assert not any(word in rest.split() for _, rest in instructions for word in ("sudo", "root"))


def test_what_the_image_copies_is_enough_to_install_the_package(tmp_path: Path) -> None:
    copies = re.findall(r"^COPY --chown=\S+ (.*)$", DOCKERFILE, re.MULTILINE)
    for sources, target in (line.rsplit(" ", 1) for line in copies):
        for source in sources.split():
            place = tmp_path / target if (ROOT / source).is_dir() else tmp_path / target / source
            subprocess.run(["cp", "-r", str(ROOT / source), str(place)], check=True)
    build = "from setuptools.build_meta import build_wheel; print(build_wheel('wheels'))"
    (tmp_path / "wheels").mkdir()
    result = subprocess.run(
        [sys.executable, "-c", build], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    (wheel,) = (tmp_path / "wheels").iterdir()
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
    assert any(name.endswith("/licenses/LICENSE") for name in held)
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in listed.split():
        if name.startswith(("afm_dist/", "data_prep/")) or re.fullmatch(r"jobs/.*\.py", name):
            assert name in held


def test_the_batch_script_is_sound_shell() -> None:
    subprocess.run(["bash", "-n", str(SLURM)], check=True)
    shellcheck = Path(sys.executable).with_name("shellcheck")
    result = subprocess.run([str(shellcheck), str(SLURM)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


def test_the_batch_script_takes_whole_machines_and_comes_back() -> None:
    lines = SLURM.read_text(encoding="utf-8").splitlines()
    options = dict(
        line.removeprefix("#SBATCH --").partition("=")[::2] for line in lines if line.startswith("#SBATCH ")
    )
    assert options["ntasks-per-node"] == "1"
    assert options["mem"] == "0"
    assert {"exclusive", "requeue"} <= set(options)
    assert options["open-mode"] == "append"  # of a job that was queued again
    assert re.fullmatch(r"B:USR1@\d+", options["signal"])
    assert {"nodes", "time", "output"} <= set(options)
    # sbatch reads no options after the first command.
    first_command = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    assert not any(line.startswith("#SBATCH") for line in lines[first_command:])


def test_the_page_on_running_names_no_missing_file() -> None:
    page = (ROOT / "docs" / "running.md").read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page):
        assert (ROOT / "docs" / target).exists(), target
