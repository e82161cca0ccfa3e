"""With Ray itself: several raylets on this machine are the nodes of a cluster."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path

import psutil
import pytest
from msgspec.structs import replace

import streamconv
from streamconv.cluster.worker import Worker
from streamconv.errors import StorageError, UsageError
from support import nowhere, running
from support.clusters import Raylets, sparse, title
from support.running import wait_until

pytest.importorskip("ray")

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ray")]

GIB = 1 << 30

#: Bytes of the large checkpoint.
LARGE = 10 * GIB


@pytest.fixture
def here(raylets: Raylets, monkeypatch: pytest.MonkeyPatch) -> Raylets:
    """The cluster that `on="ray"` means."""
    for name, value in raylets.environment.items():
        monkeypatch.setenv(name, value)
    return raylets


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Zeros for some seconds of work."""
    return sparse(tmp_path_factory.mktemp("large") / "dest", 320)


#: A raylet that ends with its standard input.
NODE = """
import sys
from ray._private.node import Node
from ray._private.parameter import RayParams
host, port = sys.argv[1].rsplit(":", 1)
params = RayParams(gcs_address=sys.argv[1], num_cpus=1, object_store_memory=80 << 20, include_log_monitor=False)
params.node_ip_address = host
node = Node(params, head=False)
print("ready", flush=True)
sys.stdin.read()
node.kill_all_processes(check_alive=False)
"""


class Once:
    """A progress function that does something once, when a good part of the work is done."""

    def __init__(self, act: Callable[[], object]) -> None:
        self.act: Callable[[], object] | None = act
        self.events: list[streamconv.Progress] = []

    def __call__(self, event: streamconv.Progress) -> None:
        self.events.append(event)
        if self.act and event.done > GIB:
            act, self.act = self.act, None
            act()


def command(*words: object, environment: Mapping[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "streamconv", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
        start_new_session=True,
    )


def test_the_same_answers(here: Raylets, tmp_path: Path) -> None:
    """By the command line: differences and exit codes are those of one host."""
    source, dest = running.llama(tmp_path / "source"), tmp_path / "dest"
    streamconv.convert(source, dest)
    found = streamconv.verify(dest, on="ray")
    assert found.nodes
    assert replace(found, nodes=()) == streamconv.verify(dest)
    other = running.with_large_values(Path(shutil.copytree(source, tmp_path / "other")))
    alone = running.run("diff", source, other, "--json", "--quiet")
    assert running.run("diff", source, other, "--json", "--quiet", "--on", "ray", env=here.environment) == alone
    assert alone.code == 7


def test_a_worker_is_killed(here: Raylets, large: Path) -> None:
    """What Ray says of the dead worker does not get into the report."""
    process = command("verify", large, "--on", "ray", "--json", environment=here.environment)
    wait_until(here.are_working, process)
    here.workers()[0].kill()
    out, err = process.communicate(timeout=60)
    values = json.loads(out)
    assert (process.returncode, values["bytes"]) == (0, LARGE)
    assert sum(node["bytes"] for node in values["nodes"]) == LARGE
    assert {*values["nodes"][0]} == {"host", "workers", "tasks", "bytes", "seconds", "peak_bytes"}
    assert "died: its worker process has died\n" in err


@pytest.mark.parametrize("where", ["a cluster that runs", "one of its own"])
def test_a_signal_ends_all_workers_soon(where: str, here: Raylets, large: Path) -> None:
    """Also one that all processes get which Ctrl-C reaches. One of its own ends with the run; a token does no harm."""
    token = {"RAY_ADDRESS": "local", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "a" * 48}
    is_own = where == "one of its own"
    process = command("verify", large, "--on", "ray", environment=token if is_own else here.environment)
    children: list[psutil.Process] = []

    def work() -> bool:
        children[:] = psutil.Process(process.pid).children(recursive=True)
        return any("ray::Worker.work" in title(child) for child in children)

    wait_until(work if is_own else here.are_working, process)
    began = time.monotonic()
    if is_own:
        os.killpg(process.pid, signal.SIGINT)
    else:
        process.terminate()
    out, err = process.communicate(timeout=20)
    assert time.monotonic() - began < 5
    assert (process.returncode, out) == (130 if is_own else 143, "")
    assert err.strip().splitlines()[-1] in ("error: terminated", "error: interrupted")
    _, left = psutil.wait_procs(children, timeout=5)
    assert left == []
    end = time.monotonic() + 5
    while here.workers() and time.monotonic() < end:
        time.sleep(0.05)
    assert here.workers() == []


def test_a_limit_that_is_too_low(here: Raylets, tmp_path: Path) -> None:
    """What importing Ray takes is inside: the number that would do is named, and does."""
    source = running.tiny(tmp_path / "source")
    found = running.run("diff", source, source, "--on", "ray", "--max-mem", "90M", env=here.environment)
    assert found.code == 6
    assert "has 90 MiB for 1 worker" in found.err
    least = re.search(r"give --max-mem ([0-9]+M) or more", found.err)[1]  # type: ignore[index]
    assert running.run("diff", source, source, "--on", "ray", "--max-mem", least, env=here.environment).code == 0


def test_a_token_that_is_not_there(here: Raylets, tmp_path: Path) -> None:
    wanted = {**here.environment, "RAY_AUTH_MODE": "token", "HOME": str(tmp_path)}
    found = running.run("verify", sparse(tmp_path / "dest", 1), "--on", "ray", env=wanted)
    assert found.code == 2
    assert "refuses the token" in found.err
    assert "RAY_AUTH_TOKEN" in found.err


def test_nobody_at_the_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dest = sparse(tmp_path / "dest", 1)
    for on, environment in (("ray://127.0.0.1:9", ""), ("ray", "127.0.0.1:9")):
        monkeypatch.setenv("RAY_ADDRESS", environment)
        with pytest.raises(StorageError, match=r"cannot connect to the Ray cluster at .*127.0.0.1:9: .*refused"):
            streamconv.verify(dest, on=on)


def test_ray_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="needs Ray") as caught:
        streamconv.verify(sparse(tmp_path / "dest", 1), on="ray")
    assert caught.value.hint == "pip install 'streamconv[ray]'"


def test_the_worker_s_class_goes_by_its_name() -> None:
    assert len(import_module("ray.cloudpickle").dumps(Worker)) < 100


def test_without_a_cluster_ray_is_not_imported(tmp_path: Path) -> None:
    dest = sparse(tmp_path / "dest", 1)
    code = (
        "import sys, streamconv\n"
        f"streamconv.verify({str(dest)!r})\n"
        "assert not [name for name in sys.modules if name.partition('.')[0] in ('ray', 'grpc')]\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=nowhere())


def test_a_node_that_sees_other_files(here: Raylets, tmp_path: Path) -> None:
    """A raylet in a mount namespace of its own has nothing where the checkpoint is."""
    dest = sparse(tmp_path / "dest", 1)
    script = f"mount -t tmpfs none {dest} && exec {sys.executable} -c '{NODE}' {here.environment['RAY_ADDRESS']}"
    node = subprocess.Popen(["unshare", "-m", "sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    if not node.stdout.readline():  # type: ignore[union-attr]
        pytest.skip("no mount namespaces here")
    with pytest.raises(StorageError, match=rf" does not see {dest}/ms-model-0.safetensors\nhint: mount the same"):
        streamconv.verify(dest, on="ray")
    node.communicate()


def test_a_node_is_lost_and_another_joins(here: Raylets, large: Path) -> None:
    """The last test: Ray takes some seconds until it counts no longer on a node that is gone."""

    def change() -> None:
        here.lose()
        here.add()

    progress = Once(change)
    found = streamconv.verify(large, on="ray", progress=progress)
    assert found.bytes_read == LARGE
    assert sum(node["bytes"] for node in found.nodes) == LARGE
    done = [event.done for event in progress.events]
    assert done == sorted(done)
