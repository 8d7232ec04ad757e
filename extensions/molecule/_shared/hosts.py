# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Throwaway hosts with a real systemd for the molecule scenarios: systemd-nspawn on a copy of a root that is built once.

    hosts.py up DIRECTORY < '{"hosts": [{"name": "one", "root": "stores"}]}'    boots them; prints where they are
    hosts.py down DIRECTORY                                                     ends them and takes all away
    hosts.py stop|start|kill DIRECTORY NAME                                     one host: power off, boot again, pull the plug
    hosts.py root NAME | wheelhouse                                             builds what is built once; prints its path
    hosts.py check                                                              whether this machine can have such hosts

Needs root and no systemd as PID 1. All that is made is named in DIRECTORY/state.json before it is made, so that whatever
an interrupted run left is found. Hosts see each other and the controller (`controller`, the bridge's address), nothing else.
Standard library only.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import ipaddress
import json
import os
import platform
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parents[2]
CACHE = Path(os.environ.get("AGENTMEM_MOLECULE_CACHE") or "/var/cache/agentmem-backup-molecule")
SOCKETS = os.environ.get("AGENTMEM_MOLECULE_SOCKETS", "")
"""Where Ansible keeps its connections: this and `-ADDRESS`."""
PROGRAMS = {
    "mmdebstrap": "mmdebstrap",
    "systemd-nspawn": "systemd-container",
    "systemctl": "systemd",
    "ip": "iproute2",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
}
"""What is needed → the Debian package that has it."""
PYTHON = "3.11"
"""The Python of the hosts (Debian 12), for which wheels are fetched."""
STAND_IN = ["qdrant-edge-py>=0.9", "starlette>=0.37", "uvicorn>=0.30", "python-multipart>=0.0.9", "httpx>=0.27"]
SECONDS_TO_BOOT = 120.0


class Trouble(Exception):
    """What is wrong, in one sentence."""


def run(*command: str | Path, **options: Any) -> str:
    """Run a program and return what it prints; Trouble with its last words where it fails."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False, **options)
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or "nothing").splitlines()
        raise Trouble(f"{' '.join(map(str, command[:2]))} failed ({done.returncode}): {' | '.join(said[-5:])}")
    return done.stdout


def check_machine() -> None:
    """Raise Trouble with one sentence that names everything this machine lacks."""
    if os.geteuid() != 0:
        raise Trouble("molecule's hosts need root: mounts, a bridge and systemd-nspawn")
    if platform.system() != "Linux" or not Path("/sys/fs/cgroup").is_mount():
        raise Trouble("molecule's hosts need a Linux with control groups")
    absent = sorted({package for program, package in PROGRAMS.items() if not shutil.which(program)})
    if absent:
        raise Trouble(f"molecule's hosts need these packages: apt-get install {' '.join(absent)}")
    run("unshare", "--mount", "--net", "--pid", "--fork", "true")


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Alone with `path` for the block, among all processes of this machine."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def until(reached: Callable[[], bool], what: str, seconds: float = SECONDS_TO_BOOT) -> None:
    """Wait for a condition; Trouble with `what` where it does not come."""
    end = time.monotonic() + seconds
    while not reached():
        if time.monotonic() > end:
            raise Trouble(f"after {seconds:.0f} s {what}")
        time.sleep(0.1)


# --- built once -----------------------------------------------------------------------------------------------------


def built(kind: str, recipe: str, build: Callable[[Path], None]) -> Path:
    """The directory that `build` fills, kept under the digest of its recipe; half-built ones are thrown away."""
    digest = hashlib.sha256(recipe.encode()).hexdigest()[:12]
    made = CACHE / f"{kind}-{digest}"
    with locked(CACHE / f"{kind}.lock"):
        if not made.exists():
            partial = CACHE / f"{kind}-{digest}.partial"
            shutil.rmtree(partial, ignore_errors=True)
            print(f"hosts: building {kind} (once)", file=sys.stderr, flush=True)
            build(partial)
            partial.rename(made)
    return made


def root(name: str) -> Path:
    """The root file system that root/NAME.packages and root/NAME.sh describe: Debian 12 with these packages."""
    packages, script = HERE / "root" / f"{name}.packages", HERE / "root" / f"{name}.sh"
    if not packages.exists():
        known = ", ".join(sorted(path.stem for path in packages.parent.glob("*.packages")))
        raise Trouble(f"there is no root {name!r}: there are {known}")
    named = [line.partition("#")[0].strip() for line in packages.read_text().splitlines()]
    wanted = ",".join(name for name in named if name)

    def build(target: Path) -> None:
        hook = f'cp {script} "$1/root/recipe" && chroot "$1" /bin/sh -eu /root/recipe && rm "$1/root/recipe"'
        run(  # in a mount namespace of its own: killed, it leaves no /proc mounted where the next run tidies up
            *("unshare", "--mount", "--fork", "--kill-child"),
            *("mmdebstrap", "--quiet", "--mode=root", "--variant=minbase", "--skip=cleanup/apt", f"--include={wanted}"),
            *("--dpkgopt=force-unsafe-io", '--aptopt=Acquire::Languages "none"', f"--customize-hook={hook}"),
            *("bookworm", target),
        )

    return built(f"root-{name}", wanted + script.read_text(), build)


def wheelhouse() -> Path:
    """Wheels of the engine's libraries, for the hosts' Python: what pyproject.toml asks for, and pip itself."""
    import tomllib

    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    optional = project["optional-dependencies"]
    # pip asks markers of the controller's Python: what only the hosts' 3.11.2 needs is named here.
    wanted = ["pip", "async-timeout>=4.0.3", *project["dependencies"], *optional["points"], *optional["notify"]]
    return built(
        "wheelhouse", repr((wanted, PYTHON, platform.machine())), lambda target: _pip("download", "--dest", target, *wanted)
    )


def stand_in() -> Path:
    """What Qdrant's stand-in imports, apart from the engine's libraries."""
    return built(
        "stand-in", repr((STAND_IN, PYTHON, platform.machine())), lambda target: _pip("install", "--target", target, *STAND_IN)
    )


def _pip(verb: str, where: str, target: Path, *packages: str) -> None:
    machine = platform.machine()
    platforms = [word for tag in ("2_28", "2_17", "2014") for word in ("--platform", _tag(tag, machine))]
    only = ("--only-binary=:all:", "--python-version", PYTHON, "--implementation", "cp")
    run(sys.executable, "-m", "pip", verb, "--quiet", "--disable-pip-version-check", *only, *platforms, where, target, *packages)


def _tag(tag: str, machine: str) -> str:
    return f"manylinux2014_{machine}" if tag == "2014" else f"manylinux_{tag}_{machine}"


# --- one run: its directory, its bridge, its hosts ------------------------------------------------------------------


class Run:
    """The hosts of one scenario. `state` is what state.json holds: everything that may have been made."""

    def __init__(self, directory: Path):
        self.directory = directory.absolute()
        self.path = self.directory / "state.json"
        self.state: dict[str, Any] = json.loads(self.path.read_text()) if self.path.exists() else {}

    def save(self) -> None:
        """Write down what is about to be made."""
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps(self.state, indent=1))
        partial.rename(self.path)

    def host(self, name: str) -> dict[str, Any]:
        """What is known of one host."""
        for host in self.state.get("hosts", []):
            if host["name"] == name:
                return dict(host)
        raise Trouble(f"there is no host {name!r} in {self.directory}")

    def tree(self, host: dict[str, Any]) -> Path:
        """Where a host's own files lie: overlay layers, root, console."""
        return self.directory / "hosts" / str(host["name"])

    # -- up

    def up(self, wanted: list[dict[str, Any]]) -> None:
        """Boot these hosts. What an earlier run left here goes first."""
        self.down()
        self.directory.mkdir(parents=True, exist_ok=True)
        roots = {host["name"]: root(host.get("root", "stores")) for host in wanted}
        served = {"wheelhouse": wheelhouse(), "stand_in": stand_in()}
        key = hashlib.sha256(str(self.directory).encode()).hexdigest()[:6]
        with locked(Path("/run/lock/agentmem-backup-molecule")):
            network = _free_network(key)
            names = [host["name"] for host in wanted]
            self.state = {
                "bridge": f"amb{key}",
                "network": str(network),
                "controller": str(network[1]),
                "binds": _binds(**served),
                "hosts": [
                    {"name": name, "machine": f"am{key}-{name}", "address": str(network[11 + number]), "root": str(roots[name])}
                    for number, name in enumerate(names)
                ],
            }
            self.save()
            run("ip", "link", "add", self.state["bridge"], "type", "bridge")
            run("ip", "address", "add", f"{network[1]}/{network.prefixlen}", "dev", self.state["bridge"])
            run("ip", "link", "set", self.state["bridge"], "up")
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "molecule", "-f", self.directory / "key")
        with ThreadPoolExecutor(len(wanted)) as pool:
            known = list(pool.map(self._furnish, self.state["hosts"]))
            (self.directory / "known_hosts").write_text("".join(known))
            list(pool.map(self.boot, self.state["hosts"]))

    def _furnish(self, host: dict[str, Any]) -> str:
        """Lay out one host's files; returns its line for known_hosts."""
        tree = self.tree(host)
        for name in ("upper", "work", "root"):
            (tree / name).mkdir(parents=True)
        self._mount(host)
        place = tree / "root"
        _write(place / "etc/hostname", f"{host['name']}\n")
        _write(place / "etc/machine-id", f"{secrets.token_hex(16)}\n")  # with none, the first boot would enable every unit
        lines = [f"{self.state['controller']} controller", *(f"{one['address']} {one['name']}" for one in self.state["hosts"])]
        _write(place / "etc/hosts", "\n".join(["127.0.0.1 localhost", "::1 localhost", *lines, ""]))
        address = f"{host['address']}/{ipaddress.ip_network(self.state['network']).prefixlen}"
        network = f"[Match]\nName=host0\n[Network]\nAddress={address}\nLinkLocalAddressing=no\nIPv6AcceptRA=no\n"
        _write(place / "etc/systemd/network/10-host0.network", network)
        _write(place / "root/.ssh/authorized_keys", (self.directory / "key.pub").read_text(), 0o600)
        key = place / "etc/ssh/ssh_host_ed25519_key"
        for old in key.parent.glob("ssh_host_*"):
            old.unlink()
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", host["name"], "-f", key)
        run("systemctl", f"--root={place}", "enable", "--quiet", "systemd-networkd", "ssh")
        public = key.with_suffix(".pub").read_text().split()
        return f"{host['address']},{host['name']} {public[0]} {public[1]}\n"

    def _mount(self, host: dict[str, Any]) -> None:
        tree = self.tree(host)
        if os.path.ismount(tree / "root") or any((tree / "root").iterdir()):
            return
        if "\toverlay\n" in Path("/proc/filesystems").read_text() or _loaded("overlay"):
            layers = f"lowerdir={host['root']},upperdir={tree / 'upper'},workdir={tree / 'work'}"
            try:
                run("mount", "-t", "overlay", "-o", layers, f"overlay-{host['machine']}", tree / "root")
                return
            except Trouble:  # an overlay cannot lie on everything: a copy does as well, slower
                pass
        run("cp", "-a", "--reflink=auto", f"{host['root']}/.", tree / "root")

    def boot(self, host: dict[str, Any]) -> None:
        """Start a host's systemd and wait until all its units are up."""
        if nspawn_of(host):
            raise Trouble(f"the host {host['name']} is running already")
        self._mount(host)
        binds = [f"--bind-ro={source}:{target}" for source, target in self.state["binds"].items()]
        command = [
            *("systemd-nspawn", "--quiet", f"--machine={host['machine']}", f"--directory={self.tree(host) / 'root'}"),
            *(f"--hostname={host['name']}", "--register=no", "--keep-unit", "--boot", "--link-journal=no", "--resolv-conf=off"),
            *("--timezone=off", "--console=pipe", "--kill-signal=SIGRTMIN+3", f"--network-bridge={self.state['bridge']}", *binds),
        ]
        with (self.tree(host) / "console.log").open("ab") as console:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=console, stderr=console, start_new_session=True,
                preexec_fn=lambda: _enter_group(host["machine"]),
            )  # fmt: skip

        def answers() -> bool:
            if process.poll() is not None:
                raise Trouble(f"the host {host['name']} did not boot: {self._last_words(host)}")
            with contextlib.suppress(OSError), socket.create_connection((host["address"], 22), timeout=1):
                return True
            return False

        until(answers, f"the host {host['name']} does not answer on ssh: {self._last_words(host)}")
        said = subprocess.run(
            [*self.ssh(host), "systemctl is-system-running --wait; systemctl --failed --no-legend --plain"],
            capture_output=True, text=True, timeout=SECONDS_TO_BOOT, check=False,
        )  # fmt: skip
        if said.stdout.strip() != "running":
            raise Trouble(f"the host {host['name']} has failed units: {' '.join(said.stdout.split())} {said.stderr.strip()}")

    def ssh(self, host: dict[str, Any]) -> list[str]:
        """The command that reaches a host, up to the words to run there."""
        pinned = ("-o", f"UserKnownHostsFile={self.directory / 'known_hosts'}", "-o", "StrictHostKeyChecking=yes")
        return ["ssh", "-i", str(self.directory / "key"), "-o", "BatchMode=yes", *pinned, f"root@{host['address']}"]

    def _last_words(self, host: dict[str, Any]) -> str:
        console = self.tree(host) / "console.log"
        words = console.read_text(errors="replace").strip().splitlines() if console.exists() else []
        return " | ".join(words[-3:]) or "it said nothing"

    # -- down

    def halt(self, host: dict[str, Any], *, gently: bool) -> None:
        """End a host: by an orderly shutdown, or at once as when the power goes."""
        pid = nspawn_of(host)
        if pid is None:
            return
        self._hang_up(host)
        if gently:
            os.kill(pid, signal.SIGTERM)
        else:
            for child in _children(pid):  # its init; the kernel ends all that lives in there with it
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
        until(lambda: nspawn_of(host) is None, f"the host {host['name']} (process {pid}) has not ended")
        _leave_group(host["machine"])

    @staticmethod
    def _hang_up(host: dict[str, Any]) -> None:
        """End Ansible's lasting connection: the next host at this address would inherit it."""
        path = Path(f"{SOCKETS}-{host['address']}")
        if SOCKETS and path.exists():
            subprocess.run(["ssh", "-O", "exit", "-o", f"ControlPath={path}", host["address"]], capture_output=True, check=False)
            path.unlink(missing_ok=True)

    def down(self) -> None:
        """Take away all that state.json names; nothing else."""
        self._end_servers()
        for host in self.state.get("hosts", []):
            self.halt(host, gently=False)
            place = self.tree(host) / "root"
            if os.path.ismount(place):
                run("umount", place)
            _leave_group(host["machine"])
        bridge = self.state.get("bridge", "")
        if bridge and Path("/sys/class/net", bridge).exists():
            run("ip", "link", "del", bridge)
        for name in ("key", "key.pub", "known_hosts"):
            (self.directory / name).unlink(missing_ok=True)
        if (self.directory / "hosts").exists():
            shutil.rmtree(self.directory / "hosts")
        self.path.unlink(missing_ok=True)
        self.state = {}

    def _end_servers(self) -> None:
        """End what a scenario that was broken off has left: servers with a place in this directory."""
        ours = f"{self.directory}/".encode()
        for pid, words in _processes():
            if {b"tests.support.listeners", b"http.server"} & set(words) and words[-1].startswith(ours):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGTERM)


def _write(path: Path, text: str, mode: int = 0o644) -> None:
    path.parent.mkdir(mode=0o755 if mode & 0o044 else 0o700, parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.write_text(text)
    path.chmod(mode)


def _loaded(module: str) -> bool:
    return bool(shutil.which("modprobe")) and subprocess.run(["modprobe", "-q", module], check=False).returncode == 0


def _free_network(key: str) -> ipaddress.IPv4Network:
    """A /24 out of 10.64.0.0/10 that no interface of this machine has, beginning at one that follows from `key`."""
    told = json.loads(run("ip", "-json", "-4", "address"))
    taken = [
        ipaddress.ip_interface(f"{one['local']}/{one['prefixlen']}").network for link in told for one in link.get("addr_info", [])
    ]
    for number in range(1 << 14):
        candidate = ipaddress.IPv4Network(((10 << 24 | 64 << 16) + ((int(key, 16) + number) % (1 << 14) << 8), 24))
        if not any(candidate.overlaps(other) for other in taken if isinstance(other, ipaddress.IPv4Network)):
            return candidate
    raise Trouble("there is no free network left in 10.64.0.0/10")


def _binds(wheelhouse: Path, stand_in: Path) -> dict[str, str]:
    """What every host sees of the controller, read-only."""
    binds = {str(wheelhouse): "/opt/wheelhouse", str(stand_in): "/opt/qdrant/lib", str(CHECKOUT / "tests"): "/opt/qdrant/tests"}
    qdrant = shutil.which("qdrant")
    return binds | ({str(Path(qdrant).resolve()): "/opt/qdrant/qdrant"} if qdrant else {})


def nspawn_of(host: dict[str, Any]) -> int | None:
    """The process of a host's systemd-nspawn, found by the machine's name in its arguments; None where there is none."""
    wanted = f"--machine={host['machine']}".encode()
    found = (pid for pid, words in _processes() if words[0].endswith(b"systemd-nspawn") and wanted in words)
    return next(found, None)


def _processes() -> Iterator[tuple[int, list[bytes]]]:
    """Every process and its arguments."""
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and (arguments := (entry / "cmdline").read_bytes()):
                yield int(entry.name), arguments.rstrip(b"\0").split(b"\0")


def _children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _groups(machine: str) -> list[Path]:
    """A control group of the machine's own in each hierarchy that systemd-nspawn uses: else all hosts would share one."""
    top = Path("/sys/fs/cgroup")
    hierarchies = [top / name for name in ("systemd", "unified") if (top / name / "cgroup.procs").exists()] or [top]
    return [hierarchy / machine for hierarchy in hierarchies]


def _enter_group(machine: str) -> None:
    for group in _groups(machine):
        group.mkdir(exist_ok=True)
        (group / "cgroup.procs").write_text(str(os.getpid()))


def _leave_group(machine: str) -> None:
    for group in _groups(machine):
        inner = sorted((Path(one) for one, __, __ in os.walk(group)), reverse=True) if group.exists() else []
        for one in inner:
            until(lambda one=one: _removed(one), f"the control group {one} is still in use")


def _removed(group: Path) -> bool:
    try:
        group.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


# --- the command ----------------------------------------------------------------------------------------------------


def main(words: list[str]) -> int:
    """Do what the words say; returns the exit code."""
    try:
        check_machine()
        verb, *rest = words or [""]
        if verb == "root":
            print(root(rest[0]))
        elif verb == "check":
            pass  # it is done
        elif verb == "wheelhouse":
            print(wheelhouse())
        elif verb in ("up", "down", "stop", "start", "kill"):
            act(verb, Path(rest[0]), *rest[1:])
        else:
            raise Trouble("usage: hosts.py up|down DIRECTORY, stop|start|kill DIRECTORY NAME, root NAME, wheelhouse, check")
    except Trouble as trouble:
        print(f"hosts: {trouble}", file=sys.stderr)
        return 1
    return 0


def act(verb: str, directory: Path, name: str = "") -> None:
    """One verb on a run's hosts, alone with its directory."""
    with locked(directory / "lock"):
        current = Run(directory)
        if verb == "up":
            current.up(json.load(sys.stdin)["hosts"])
            print(json.dumps(current.state, indent=1))
        elif verb == "down":
            current.down()
        elif verb == "start":
            current.boot(current.host(name))
        else:
            current.halt(current.host(name), gently=verb == "stop")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
