"""What a page's commands need and a machine of tests has not: schedulers, ssh, other hosts. `stand_ins.py NAME …`.

Each does what its namesake does with our files: reads the script or the manifest, and starts the same commands with the
same variables. Ray is the real one; its ports are others, so that clusters of several runs do not meet.

    STAGE/head      ports of the head that was started last, as JSON
    STAGE/shared    what /shared is
"""

from __future__ import annotations

import json
import os
import re
import shlex
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import yaml

Words = Sequence[str]
ROOT = Path(__file__).resolve().parents[2]
_AT_ONCE = 2
_NODES = 2


def stage() -> Path:
    return Path(os.environ["STAGE"])


def here(text: str) -> str:
    """The text with paths of this machine."""
    return text.replace("/shared", str(stage() / "shared"))


def run(words: Words | str, **environment: object) -> int:
    extra = {name: str(value) for name, value in environment.items()}
    return subprocess.run(words, env={**os.environ, **extra}, shell=isinstance(words, str), check=False).returncode


def each(count: int, one: Callable[[int], int]) -> int:
    """The worst exit code of several tasks, of which some run at the same time."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return max(pool.map(one, range(count)))


def head() -> dict[str, int]:
    found: dict[str, int] = json.loads((stage() / "head").read_text())
    return found


def streamconv(words: Words) -> int:
    text = " ".join(words)
    # A client's server of Ray does not start on every machine: the driver connects to the cluster itself in its place.
    is_client = "ray://head:10001" in text
    words = ["ray" if word == "ray://head:10001" else word for word in words]
    if is_client or os.environ.get("RAY_ADDRESS", "").endswith(":6379"):
        os.environ["RAY_ADDRESS"] = f"127.0.0.1:{head()['port']}"
    return run([sys.executable, "-m", "streamconv", *words])


def ray(words: Words) -> int:
    if "--head" in words:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        (stage() / "head").write_text(json.dumps({"port": port}))
        words = [*words, f"--port={port}"]
    else:
        words = [re.sub(r"^--address=.*:6379$", f"--address=127.0.0.1:{head()['port']}", word) for word in words]
    return run([sys.executable, "-c", "from ray.scripts.scripts import main; main()", *words])


def end_ray(folder: Path) -> None:
    """End the clusters that have their files in a folder."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if f"{folder}/ray/session" in " ".join(process.cmdline()):
                found.append(process)
    for process in found:
        with suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(found, 10)


def pip(words: Words) -> int:
    """Nothing is installed; that there is such an extra is looked up."""
    assert list(words) == ["install", "streamconv[ray]"]
    assert re.search(r"^ray = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    return 0


def ssh(words: Words) -> int:
    return run(" ".join(words[1:]))


def msrun(words: Words) -> int:
    return run([sys.executable, "-c", "from mindspore.parallel.cluster.run import main; main()", *words])


def sbatch(words: Words) -> int:
    """An array's tasks, some at a time; or a job on two nodes, which are both this one."""
    text = here(Path(words[-1]).read_text())
    options = dict(re.findall(r"^#SBATCH --([\w-]+)=(\S+)$", text, re.MULTILINE))
    script = stage() / "script"
    script.write_text(text)
    environment = {"SLURM_CPUS_PER_TASK": options["cpus-per-task"]}
    if "array" in options:
        low, high = map(int, options["array"].split("-"))
        array = {"MIN": low, "MAX": high, "STEP": 1, "COUNT": high - low + 1}
        environment |= {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in array.items()}
        one_task = {"SLURM_PROCID": "0", "SLURM_NTASKS": "1", **environment}
        return each(high - low + 1, lambda n: run(["bash", str(script)], **one_task, SLURM_ARRAY_TASK_ID=low + n))
    folder = Path(tempfile.mkdtemp(prefix="sc"))
    try:
        count = min(int(options["nodes"]), _NODES)
        return run(["bash", str(script)], **environment, SLURM_NNODES=count, RAY_TMPDIR=folder)
    finally:
        end_ray(folder)


def srun(words: Words) -> int:
    options = [word for word in words[: words.index("ray")] if word.startswith("--")]
    count = int(next(word for word in options if word.startswith("--ntasks=")).partition("=")[2])
    command = words[len(options) :]
    return each(count, lambda n: run(command, SLURM_PROCID=n, SLURM_NTASKS=count))


def kubectl(words: Words) -> int:
    if words[0] == "wait":
        return 0 if (stage() / words[-1].replace("/", "-")).exists() else 1
    assert words[:2] == ["apply", "-f"]
    return max(map(_applied, yaml.safe_load_all(here(Path(words[2]).read_text()))))


def _applied(manifest: Any) -> int:
    kind, name, spec = manifest["kind"], manifest["metadata"]["name"], manifest["spec"]
    code = {"PersistentVolumeClaim": _claim, "Job": _job, "RayJob": _ray_job}[kind](spec)
    if code == 0:
        (stage() / f"{kind.lower()}-{name}").touch()
    return code


def _claim(spec: Mapping[str, Any]) -> int:
    return 0 if spec["accessModes"] == ["ReadWriteMany"] else 1


def _job(spec: Mapping[str, Any]) -> int:
    assert spec["completionMode"] == "Indexed"
    pod = spec["template"]["spec"]
    command = _container(pod)["command"]
    return each(spec["completions"], lambda n: run(command, JOB_COMPLETION_INDEX=n))


def _ray_job(spec: Mapping[str, Any]) -> int:
    """The cluster of the stage is the one that the operator would start."""
    cluster = spec["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        _container(group["template"]["spec"])
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
    return run(shlex.split(spec["entrypoint"]), RAY_ADDRESS="head:6379")


def _container(pod: Mapping[str, Any]) -> Mapping[str, Any]:
    """The only container of a pod, which has the claim at the path of the shared files."""
    (container,) = pod["containers"]
    claims = {volume["name"]: volume["persistentVolumeClaim"]["claimName"] for volume in pod["volumes"]}
    (mount,) = container["volumeMounts"]
    assert mount["mountPath"] == str(stage() / "shared")
    assert (stage() / f"persistentvolumeclaim-{claims[mount['name']]}").exists()
    found: Mapping[str, Any] = container
    return found


NAMES = {one.__name__: one for one in (streamconv, ray, pip, ssh, msrun, sbatch, srun, kubectl)}

if __name__ == "__main__":
    sys.exit(NAMES[sys.argv[1]](sys.argv[2:]))
