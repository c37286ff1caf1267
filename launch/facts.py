"""What a host says of itself before a job starts on it, as a line of JSON. `launch.submit` runs it on every host; imports no torch.

python -m launch.facts --shared RUN_DIR/launch/ATTEMPT --name node001 --port 29500
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import platform
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

import psutil

PACKAGES = ("torch", "megatron-core", "deepspeed", "numpy", "transformers", "safetensors", "av", "pillow", "fsspec")
"""What ranks compute and decode with."""
OPTIONAL_PACKAGES = (
    *("transformer-engine", "flash-attn", "triton"),
    *("nvidia-dali-cuda120", "nvidia-dali-cuda130"),
    "aiohttp",  # shards from a web server
)
"""The same, but a run may do without."""
CODE = ("megatron_ovenc", "onevision_encoder", "codec", "launch", "eval")
"""This project's packages that ranks import."""
NONCE = "nonce"
"""File in the shared directory that the submitting host writes and every host reads back."""


class Facts(TypedDict):
    """A host's answer."""

    addresses: dict[str, str]
    """IPv4 addresses with their prefix length (`10.0.0.1/24`) by interface: up, neither loopback nor link-local."""
    versions: dict[str, str]
    """Python and the packages whose versions must agree; `missing` where one is not installed."""
    code: dict[str, str]
    """Digest of every source file and compiled extension, by its path below the project's root."""
    nonce: str
    """What the host read from the shared directory, or why it could not."""
    port_free: bool
    """Whether the master port can be bound."""


def addresses() -> dict[str, str]:
    """IPv4 address and prefix length of every interface on which other hosts may reach this one."""
    states = psutil.net_if_stats()
    return {
        interface: f"{entry.address}/{bin(int.from_bytes(socket.inet_aton(entry.netmask), 'big')).count('1')}"
        for interface, entries in psutil.net_if_addrs().items()
        for entry in entries
        if entry.family == socket.AF_INET
        and entry.netmask
        and states[interface].isup
        and not entry.address.startswith(("127.", "169.254."))
    }


def versions(packages: Sequence[str] = (*PACKAGES, *OPTIONAL_PACKAGES)) -> dict[str, str]:
    """Installed versions, read from package metadata."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "missing"
    return found


def code(root: Path) -> dict[str, str]:
    """Digests of the files under `root` that ranks run: a host without the compiled codec would train on other patches."""
    files = (path for package in CODE for path in (root / package).rglob("*") if path.suffix in {".py", ".so"})
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()[:12] for path in sorted(files)
    }


def read_shared(shared: Path, name: str) -> str:
    """Read the submitting host's nonce and leave the same under this host's name, so that both see what the other wrote."""
    try:
        nonce = (shared / NONCE).read_text()
        (shared / f"{NONCE}.{name}").write_text(nonce)
    except OSError as error:
        return f"{type(error).__name__}: {error.strerror}"
    return nonce


def port_free(port: int) -> bool:
    """Whether nothing listens on a port. Connections that are still closing do not count."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("", port))
        except OSError:
            return False
    return True


def main() -> None:
    """Print this host's facts."""
    parser = argparse.ArgumentParser(description="What a host says of itself before a job starts on it.")
    parser.add_argument("--shared", type=Path, required=True, help="directory that all hosts must see")
    parser.add_argument("--name", required=True, help="this host, as the hostfile calls it")
    parser.add_argument("--port", type=int, required=True, help="master port")
    options = parser.parse_args()
    facts = Facts(
        addresses=addresses(),
        versions=versions(),
        code=code(Path(__file__).parents[1]),
        nonce=read_shared(options.shared, options.name),
        port_free=port_free(options.port),
    )
    print(json.dumps(facts), flush=True)


if __name__ == "__main__":
    main()
