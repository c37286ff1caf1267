"""Two hosts on one machine: own network, process ids, host name and sshd each; only files are shared, as on a cluster.

    python -m tests.multinode.hosts up STATE                 boot them: node1 (10.77.0.1) and node2 (10.77.0.2)
    python -m tests.multinode.hosts run STATE COMMAND...     run a command on node1, in this directory
    python -m tests.multinode.hosts cut | heal STATE         take node2's cable out of the switch, or put it back
    python -m tests.multinode.hosts down STATE               remove them and every process on them
    python -m tests.multinode.hosts packages                 install what they are made of, where one may (Debian, Ubuntu)

Needs root, iproute2, util-linux, openssh-server and pdsh. Names are derived from the STATE directory, so that several checkouts do
not meet; the switch is a network namespace too, so the machine's own network is not touched. `ip netns exec` binds what lies in
/etc/netns/NAME over /etc: that gives the hosts their keys and ssh settings without a line in anybody's ~/.ssh.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

NODES = ("node1", "node2")
ADDRESSES = {"node1": "10.77.0.1", "node2": "10.77.0.2"}
PACKAGES = ("iproute2", "openssh-server", "pdsh")
"""Debian's names of what the hosts are made of."""
SMALL_DISK = "16m"
"""Size of a disk that is soon full."""


def missing() -> str:
    """Why the hosts cannot be made here; empty when they can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "two hosts on one machine are made of network namespaces: that needs root on Linux"
    absent = [name for name in ("ip", "unshare", "nsenter", "sshd", "pdsh") if shutil.which(name, path=_PATH) is None]
    if absent:
        return f"{', '.join(absent)} not found: apt-get install {' '.join(PACKAGES)}"
    probe = subprocess.run(
        ["unshare", "--net", "--mount", "--pid", "--fork", "true"], capture_output=True, text=True, check=False
    )
    return f"this container may not make namespaces: {probe.stderr.strip()}" if probe.returncode else ""


def install() -> None:
    """Install what `missing` misses, where that is a matter of apt-get; otherwise do nothing."""
    if os.geteuid() == 0 and shutil.which("apt-get") and "not found" in missing():
        _call("apt-get", "update", "-qq")
        _call("apt-get", "install", "-y", "-qq", *PACKAGES)


_PATH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"


class TwoHosts:
    """The pair of hosts that belongs to a state directory. Booting a host that is up, or removing one that is not, is fine."""

    def __init__(self, state: Path) -> None:
        self.state = state.resolve()
        self.small_disk = self.state / "small"
        """A disk of SMALL_DISK that both hosts see."""
        self._tag = "ov" + hashlib.sha256(str(self.state).encode()).hexdigest()[:6]

    # ---- life

    def up(self) -> None:
        """Make the network, and boot both hosts."""
        self.state.mkdir(parents=True, exist_ok=True)
        Path("/run/sshd").mkdir(exist_ok=True)
        key = self.state / "id"
        if not key.exists():
            _call("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key))
        self.small_disk.mkdir(exist_ok=True)
        if not self.small_disk.is_mount():  # before the hosts start: they see what is mounted by then
            _call("mount", "-t", "tmpfs", "-o", f"size={SMALL_DISK}", "tmpfs", str(self.small_disk))
        switch = self._namespace("switch")
        if not _exists(switch):
            _call("ip", "netns", "add", switch)
            _call("ip", "-n", switch, "link", "add", "bridge", "type", "bridge")
            _call("ip", "-n", switch, "link", "set", "bridge", "up")
        for node in NODES:
            self.boot(node)
        (self.state / "hostfile").write_text("".join(f"{node} slots=2\n" for node in NODES))

    def boot(self, node: str, clock_s: int = 0) -> None:
        """Start a host that is down; its clock is `clock_s` seconds ahead. Waits until it takes logins."""
        if self.init_pid(node) is not None:
            return
        self._wire(node)
        self._plug(node, "up")
        self._write_etc(node)
        daemon = ["/usr/sbin/sshd", "-D", "-e", *([self._wrong_clock(clock_s)] if clock_s else [])]
        isolate = ["unshare", "--uts", "--pid", "--fork", "--kill-child", "--propagation", "slave", "--mount-proc"]
        script = f'hostname {node}; ip link set lo up; exec "$0" "$@"'
        with (self.state / f"{node}.log").open("a") as log:
            subprocess.Popen(
                ["ip", "netns", "exec", self._namespace(node), *isolate, "sh", "-c", script, *daemon],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        _wait(lambda: self.init_pid(node) is not None, f"{node} does not boot; see {self.state}/{node}.log")
        _wait(lambda: self._answers(node), f"{node} takes no logins; see {self.state}/{node}.log")

    def down(self) -> None:
        """Remove both hosts and all that runs on them."""
        for node in (*NODES, "switch"):
            self.power_off(node)
            name = self._namespace(node)
            if _exists(name):
                _call("ip", "netns", "del", name)
            shutil.rmtree(Path("/etc/netns") / name, ignore_errors=True)
        if self.small_disk.is_mount():
            _call("umount", "--lazy", str(self.small_disk))

    def power_off(self, node: str) -> None:
        """End every process of a host at once; nobody on the network hears of it, for the cable is out before."""
        if node != "switch" and _exists(self._namespace(node)):
            self._plug(node, "down")
        for pid in self._all_pids(node):
            _kill(pid)
        _wait(lambda: not self._all_pids(node), f"processes on {node} outlive SIGKILL")

    # ---- use

    def command(self, node: str, *words: str) -> list[str]:
        """The command line that runs `words` on a host, in the same directory."""
        pid = self.init_pid(node)
        assert pid is not None, f"{node} is down"
        enter = ["nsenter", "--target", str(pid), "--net", "--pid", "--uts", "--mount", f"--wd={Path.cwd()}"]
        return [*enter, "--", *words]

    def pids(self, node: str) -> list[int]:
        """What runs on a host beside its ssh daemon and logins, by the machine's process ids."""
        return [pid for pid in self._all_pids(node) if len(_own_ids(pid)) > 1 and not _is_daemon(pid)]

    def init_pid(self, node: str) -> int | None:
        """The machine's id of a host's first process; none when the host is down."""
        for pid in self._all_pids(node):
            if _own_ids(pid)[1:] == ["1"] and _is_daemon(pid):
                return pid
        return None

    def cut(self) -> None:
        """Packets between the hosts are lost from now on."""
        self._plug("node2", "down")

    def heal(self) -> None:
        """Packets pass again."""
        self._plug("node2", "up")

    # ---- parts

    def _namespace(self, node: str) -> str:
        return f"{self._tag}-{node}"

    def _wire(self, node: str) -> None:
        name, switch = self._namespace(node), self._namespace("switch")
        if _exists(name):
            return
        _call("ip", "netns", "add", name)
        _call("ip", "-n", switch, "link", "add", node, "type", "veth", "peer", "name", "eth0", "netns", name)
        _call("ip", "-n", switch, "link", "set", node, "master", "bridge")
        _call("ip", "-n", name, "addr", "add", f"{ADDRESSES[node]}/24", "dev", "eth0")
        _call("ip", "-n", name, "link", "set", "eth0", "up")

    def _plug(self, node: str, state: str) -> None:
        """Put a host's cable into the switch (`up`) or take it out (`down`)."""
        _call("ip", "-n", self._namespace("switch"), "link", "set", node, state)

    def _write_etc(self, node: str) -> None:
        """This host's /etc/hosts and /etc/ssh."""
        etc = Path("/etc/netns") / self._namespace(node)
        (etc / "ssh").mkdir(parents=True, exist_ok=True)
        table = "".join(f"{address} {name}\n" for name, address in ADDRESSES.items())
        (etc / "hosts").write_text("127.0.0.1 localhost\n" + table)
        host_key = etc / "ssh" / "ssh_host_ed25519_key"
        if not host_key.exists():
            _call("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(host_key))
        (etc / "ssh" / "ssh_config").write_text(
            f"Host *\n  IdentityFile {self.state}/id\n  StrictHostKeyChecking no\n"
            "  UserKnownHostsFile /dev/null\n  LogLevel ERROR\n"
        )
        (etc / "ssh" / "sshd_config").write_text(
            f"HostKey {Path('/etc/ssh') / host_key.name}\nAuthorizedKeysFile {self.state}/id.pub\nStrictModes no\n"
            "PermitRootLogin yes\nUsePAM no\nPidFile none\nMaxStartups 100\n"
        )

    def _wrong_clock(self, ahead_s: int) -> str:
        """The option of sshd by which all that it starts is told another time of day."""
        library = self.state / "wrong_clock.so"
        _call("c++", "-shared", "-fPIC", "-o", str(library), str(Path(__file__).with_name("wrong_clock.cpp")))
        return f"-oSetEnv=LD_PRELOAD={library} CLOCK_AHEAD_S={ahead_s}"

    def _answers(self, node: str) -> bool:
        login = self.command(node, "ssh", "-oBatchMode=yes", "-oConnectTimeout=2", ADDRESSES[node], "true")
        return subprocess.run(login, capture_output=True, check=False).returncode == 0

    def _all_pids(self, node: str) -> list[int]:
        if not _exists(self._namespace(node)):
            return []
        found = subprocess.run(
            ["ip", "netns", "pids", self._namespace(node)], capture_output=True, text=True, check=False
        )
        return [int(word) for word in found.stdout.split()]


def _exists(namespace: str) -> bool:
    return Path("/run/netns", namespace).exists()


def _call(*command: str) -> None:
    subprocess.run(command, check=True, env=os.environ | {"PATH": _PATH})


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _status(pid: int) -> Mapping[str, str]:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    return dict(line.split(":", 1) for line in lines if ":" in line)


def _own_ids(pid: int) -> list[str]:
    """A process's ids, the machine's first and the host's second: what starts a host lives outside of it and has only one."""
    return _status(pid).get("NSpid", "").split()


def _is_daemon(pid: int) -> bool:
    return _status(pid).get("Name", "").strip() in ("sshd", "sshd-session", "sshd-auth")


def _wait(condition: object, complaint: str, seconds: float = 20.0) -> None:
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(complaint)
        time.sleep(0.05)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("up", "run", "cut", "heal", "down", "packages"))
    parser.add_argument("state", type=Path, nargs="?", help="directory of keys, logs and the hostfile")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args(arguments)
    if options.action == "packages":
        install()
        return 0
    if options.state is None:
        parser.error("which STATE?")
    if reason := missing():
        print(f"error: {reason}", file=sys.stderr)
        return 2
    hosts = TwoHosts(options.state)
    if options.action == "run":
        return subprocess.run(hosts.command("node1", *options.command), check=False).returncode
    {"up": hosts.up, "cut": hosts.cut, "heal": hosts.heal, "down": hosts.down}[options.action]()
    return 0


if __name__ == "__main__":
    sys.exit(main())
