from __future__ import annotations

import copy
import re
import socket
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
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
    workers = {name: kind for name, kind in types.items() if name != prepared["head_node_type"]}
    assert types[prepared["head_node_type"]]["resources"]["CPU"] == 0
    assert workers
    for kind in workers.values():
        assert 1 <= kind["min_workers"] < kind["max_workers"] <= prepared["max_workers"]


def test_every_node_gets_this_package(written: dict[str, Any]) -> None:
    prepared = prepare_config(copy.deepcopy(written))
    (target,) = [remote for remote, local in written["file_mounts"].items() if local == "."]
    for commands in (prepared["head_setup_commands"], prepared["worker_setup_commands"]):
        assert any(command.startswith("pip install") and command.endswith(target) for command in commands)
    assert {".venv", "runs", "data", ".git"} <= set(written["rsync_exclude"])


def test_the_image_has_a_python_and_a_ray_that_the_package_accepts(written: dict[str, Any]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    tag = re.fullmatch(r"rayproject/ray:([\d.]+)-py(\d)(\d+)-cpu", written["docker"]["image"])
    assert tag is not None
    requirements = {(one := Requirement(text)).name: one for text in project["dependencies"]}
    assert tag[1] in requirements["ray"].specifier
    assert f"{tag[2]}.{tag[3]}" in SpecifierSet(project["requires-python"])


def test_every_node_starts_ray_with_token_authentication(written: dict[str, Any]) -> None:
    assert "/home/ray/.ray/auth_token" in written["file_mounts"]
    for commands in (written["head_start_ray_commands"], written["worker_start_ray_commands"]):
        assert commands[0] == "ray stop"
        (start,) = [command for command in commands if "ray start" in command]
        assert start.startswith("export RAY_AUTH_MODE=token;")
