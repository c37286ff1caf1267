"""What is compared between hosts, and where their ranks meet."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

from launch.facts import CODE, OPTIONAL_PACKAGES, PACKAGES, Facts
from launch.hosts import disagreements
from launch.meeting import master_address, next_address

ROOT = Path(__file__).parents[2]


def test_the_master_address_is_not_guessed() -> None:
    one, two = {"ib0": "10.0.0.1/24"}, {"eth0": "192.168.0.1/16", "ib0": "10.0.0.1/24"}
    assert master_address(None, "a", one) == ("10.0.0.1", "10.0.0.1/24")
    assert master_address("10.0.0.1", "a", two) == ("10.0.0.1", "10.0.0.1/24")
    for wanted, found, message in [
        (None, two, r"a has 192.168.0.1 \(eth0\), 10.0.0.1 \(ib0\); say with --master-addr"),
        (None, {}, "no address but the loopback"),
        ("10.0.0.9", two, "is not an address of the first host a"),
        ("no-such-name.invalid", two, "does not resolve"),
    ]:
        with pytest.raises(ValueError, match=message):
            master_address(wanted, "a", found)


def test_another_first_host_is_met_on_the_same_network() -> None:
    found = {"eth0": "192.168.0.2/16", "ib0": "10.0.0.2/24"}
    assert next_address("b", found, "10.0.0.1/24") == ("10.0.0.2", "10.0.0.2/24")
    for network, others in [("10.0.1.1/24", {}), ("10.0.0.1/24", {"ib1": "10.0.0.3/24"})]:
        with pytest.raises(ValueError, match=r"b cannot take the first host's place: .*10\.0\.0\.2/24"):
            next_address("b", found | others, network)


def test_hosts_that_agree_have_no_problem(tmp_path: Path) -> None:
    facts = Facts(addresses={}, versions={"torch": "2.8.0"}, code={"a.py": "1"}, nonce="n", port_free=True)
    assert disagreements({"a": facts, "b": facts}, "n", tmp_path, 1) == []


def test_a_package_that_is_not_everywhere_is_a_problem_even_if_a_run_may_do_without(tmp_path: Path) -> None:
    def facts(version: str) -> Facts:
        return Facts(addresses={}, versions={"flash-attn": version}, code={}, nonce="n", port_free=True)

    found = disagreements({"a": facts("2.7"), "b": facts("missing")}, "n", tmp_path, 1)
    assert found == ["flash-attn differs: 2.7 on a; missing on b; install the same version everywhere"]
    assert disagreements({"a": facts("missing"), "b": facts("missing")}, "n", tmp_path, 1) == []


def test_all_that_ranks_import_is_compared() -> None:
    """This project's packages by their digests, others by their versions."""
    imported: set[str] = set()
    for path in (path for package in CODE for path in (ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                imported.add(node.module.partition(".")[0])
    ours = {name for name in imported if (ROOT / name).is_dir()}
    assert ours == set(CODE)
    by_package = {"megatron": "megatron-core", "PIL": "pillow", "nvidia": "nvidia-dali-cuda130"}
    without_influence = {"mpi4py", "psutil", "rich", "packaging", "wandb", "yaml"}
    without_influence |= {"codec_video_prep", "mvextractor"}  # codec.bench measures beside them
    others = imported - ours - set(sys.stdlib_module_names) - without_influence
    compared = {by_package.get(name, name.replace("_", "-")) for name in others}
    assert compared <= {*PACKAGES, *OPTIONAL_PACKAGES}
