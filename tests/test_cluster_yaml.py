from __future__ import annotations

import copy
import socket
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).parents[1]


@pytest.fixture
def written() -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load((ROOT / "cluster.yaml").read_text(encoding="utf-8"))
    return config


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError(f"network access: {arguments}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.usefixtures("no_network")
def test_the_launcher_accepts_the_file(written: dict[str, Any]) -> None:
    validate_config(prepare_config(copy.deepcopy(written)))


def test_the_head_offers_no_cpus_and_workers_can_grow(written: dict[str, Any]) -> None:
    prepared = prepare_config(copy.deepcopy(written))
    types = prepared["available_node_types"]
    assert prepared["head_node_type"] == "head"
    assert types["head"]["resources"]["CPU"] == 0
    assert set(types) == {"head", "cpu-worker", "gpu-worker"}
    assert 1 <= types["cpu-worker"]["min_workers"] < types["cpu-worker"]["max_workers"]
    assert 0 == types["gpu-worker"]["min_workers"] < types["gpu-worker"]["max_workers"]
    assert all(kind["max_workers"] <= prepared["max_workers"] for kind in types.values())
    assert prepared["idle_timeout_minutes"] > 0


def test_every_node_gets_this_package_and_those_with_gpus_a_pytorch_that_uses_them(
    written: dict[str, Any],
) -> None:
    prepared = prepare_config(copy.deepcopy(written))
    (target,) = [remote for remote, local in written["file_mounts"].items() if local == "."]
    assert {".venv", "runs", "data", ".git"} <= set(written["rsync_exclude"])
    on_gpu = prepared["available_node_types"]["gpu-worker"]["worker_setup_commands"]
    on_cpu = (prepared["head_setup_commands"], prepared["worker_setup_commands"])
    for commands in (*on_cpu, on_gpu):
        (install,) = [command for command in commands if target in command]
        assert install.startswith("pip install ")
        assert install.split()[-1] == target
        assert ("whl/cpu" in install) == (commands is not on_gpu)


def test_every_node_starts_ray_with_token_authentication(written: dict[str, Any]) -> None:
    assert "/home/ray/.ray/auth_token" in written["file_mounts"]
    for commands in (written["head_start_ray_commands"], written["worker_start_ray_commands"]):
        assert commands[0] == "ray stop"
        (start,) = [command for command in commands if "ray start" in command]
        assert start.startswith("export RAY_AUTH_MODE=token;")
