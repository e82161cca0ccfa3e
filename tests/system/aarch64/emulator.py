"""An emulated aarch64 Python: QEMU's user mode, Debian's python3 and the wheels that pip would choose there.

Nothing is installed: packages are downloaded by apt with a configuration and a state of its own, and unpacked into a
folder. Neither root rights, binfmt_misc, chroot nor mounts are needed, only a Debian whose sources have arm64 packages,
and a network.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

#: What goes into the root. NumKong needs the C++ library; of the emulator, `_install` downloads the host's build.
PACKAGES = ("python3", "libstdc++6")
EMULATOR = "qemu-user-static"
#: The wheels that an aarch64 host with glibc 2.28 or later accepts.
PLATFORMS = ("manylinux2014_aarch64", "manylinux_2_17_aarch64", "manylinux_2_27_aarch64", "manylinux_2_28_aarch64")
_TIMEOUT = 600
#: Sources and keys are the system's own. An empty status makes apt resolve all that the packages need.
_APT = """
APT::Architecture "arm64";
APT::Architectures {{ "arm64"; "{host}"; }};
APT::Install-Recommends "false";
APT::Sandbox::User "";
APT::Keep-Downloaded-Packages "true";
Acquire::Languages "none";
Dir::Cache "{folder}/cache";
Dir::State "{folder}/state";
Dir::State::status "{folder}/status";
"""


class NotAvailableError(Exception):
    """There is no emulator to be had here, and why."""


def default_folder() -> Path:
    """Return this user's cache, shared by all runs on the machine."""
    return Path(tempfile.gettempdir()) / f"streamconv-aarch64-{os.getuid()}"


def prepare(folder: Path) -> Path:
    """Return the emulated Python in `folder`, which is set up where it is not there yet.

    Raises:
        NotAvailableError: it cannot be had here.
    """
    if platform.machine() == "aarch64":
        raise NotAvailableError("this machine is an aarch64 itself: all tests run there as they are")
    for program in ("apt-get", "dpkg", "dpkg-deb"):
        if not shutil.which(program):
            raise NotAvailableError(f"there is no {program}: the emulator comes from Debian's packages")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise NotAvailableError(f"{folder} belongs to another user")
    with _locked(folder / "lock"):
        python, marker = folder / "python", folder / "ready"
        wanted = "\n".join([_digest_of_this_file(), *_requirements()])
        if not marker.exists() or marker.read_text() != wanted:
            marker.unlink(missing_ok=True)
            _set_up(folder)
            marker.write_text(wanted)
    return python


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _digest_of_this_file() -> str:
    return hashlib.sha256(Path(__file__).read_bytes()).hexdigest()


def _set_up(folder: Path) -> None:
    for name in ("apt", "host", "root", "site"):
        shutil.rmtree(folder / name, ignore_errors=True)
    for package in _download(folder / "apt"):
        # Debian's names end with `_amd64.deb`, `_arm64.deb` or `_all.deb`; of the host's there is only the emulator.
        target = "host" if package.stem.endswith(f"_{_architecture()}") else "root"
        _run("dpkg-deb", "-x", package, folder / target)
    _only(folder / "host" / "usr" / "bin", r"qemu-aarch64(-static)?").replace(folder / "qemu")
    for name in ("apt", "host"):
        shutil.rmtree(folder / name)
    if not (
        folder / "root" / "lib"
    ).exists():  # newer releases have all libraries in usr/lib, and a link from base-files
        (folder / "root" / "lib").symlink_to("usr/lib")
    interpreter = _only(folder / "root" / "usr" / "bin", r"python3\.\d+")
    _write_launcher(folder, interpreter)
    _install_wheels(folder / "site", interpreter.name.removeprefix("python"))


def _architecture() -> str:
    return _run("dpkg", "--print-architecture").strip()


def _download(folder: Path) -> list[Path]:
    """Return the packages that the emulated Python consists of, and the emulator's."""
    for name in ("state/lists/partial", "cache/archives/partial"):
        (folder / name).mkdir(parents=True)
    (folder / "status").touch()
    (folder / "apt.conf").write_text(_APT.format(folder=folder, host=_architecture()))
    environment = {"APT_CONFIG": str(folder / "apt.conf")}
    _run("apt-get", "update", env=environment)
    emulator = f"{EMULATOR}:{_architecture()}"
    _run("apt-get", "install", "--yes", "--download-only", *PACKAGES, emulator, env=environment)
    return sorted((folder / "cache" / "archives").glob("*.deb"))


def _write_launcher(folder: Path, interpreter: Path) -> None:
    """Write the program that starts the emulated Python; its children are to start the same."""
    launcher = folder / "python"
    launcher.write_text(f'#!/bin/sh\nexec "{folder / "qemu"}" -L "{folder / "root"}" "{interpreter}" "$@"\n')
    launcher.chmod(0o755)
    packages = folder / "root" / "usr" / "lib" / "python3" / "dist-packages"
    packages.mkdir(parents=True, exist_ok=True)
    start = f"import sys; sys.executable = {str(launcher)!r}"
    (packages / "emulated.pth").write_text(f"{folder / 'site'}\n{start}\n")


def _install_wheels(site: Path, version: str) -> None:
    """Install the wheels of the versions that are installed here, so that only the processor differs."""
    words = [word for name in PLATFORMS for word in ("--platform", name)]
    words += [
        "--python-version",
        version,
        "--implementation",
        "cp",
        "--only-binary=:all:",
        "--no-deps",
        "--retries",
        "1",
    ]
    _run(sys.executable, "-m", "pip", "install", "--quiet", "--target", site, *words, *_requirements())


def _requirements() -> list[str]:
    """What the package needs, in the versions that are installed here."""
    needed = [line for line in metadata.requires("streamconv") or () if "extra ==" not in line]
    names = [match[0] for line in needed if (match := re.match(r"[\w.-]+", line))]
    return [f"{name}=={metadata.version(name)}" for name in sorted(names)]


def _only(folder: Path, pattern: str) -> Path:
    found = [path for path in sorted(folder.glob("*")) if re.fullmatch(pattern, path.name)]
    if len(found) != 1:
        raise NotAvailableError(f"{folder} has {len(found)} programs like {pattern}")
    return found[0]


def _run(*words: object, env: Mapping[str, str] | None = None) -> str:
    """Run a command of the set-up, and return what it printed."""
    command = [str(word) for word in words]
    try:
        done = subprocess.run(
            command, env={**os.environ, **(env or {})}, capture_output=True, text=True, timeout=_TIMEOUT, check=False
        )
    except subprocess.TimeoutExpired:
        raise NotAvailableError(
            f"cannot set up the emulator: {' '.join(command[:2])} took more than {_TIMEOUT} s"
        ) from None
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines() or ["nothing"]
        raise NotAvailableError(
            f"cannot set up the emulator: {' '.join(command[:2])} ended with {done.returncode}: {said[-1]}"
        )
    return done.stdout
