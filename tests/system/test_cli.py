"""The command line's contract: exit codes, messages, output for people and for programs."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import streamconv
from streamconv.cli import commands
from streamconv.cli import main as cli
from streamconv.errors import EXIT_CODES
from streamconv.families import families
from support import golden, nowhere, running
from support.faults import ENDLESS, SLOW, SLOWER, Fault
from support.running import call, run, tree

# -- exit codes, each by a real run ------------------------------------------------------------------------------------


def limit_files() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))


def shorten(folder: Path) -> None:
    shard = sorted(folder.glob("*.safetensors"))[1]
    os.truncate(shard, shard.stat().st_size - 5)


def unknown_model(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "nonesuch"}')


def break_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


#: A fault of the program itself, with what would colour a terminal.
FORCED = ("bug", "forced \x1b[31m")

FAILURES = {
    "a fault while planning": (
        1,
        {"faults": (("read", *FORCED),)},
        [],
        None,
        "report it",
    ),
    "a fault while writing": (1, {"faults": (("write", *FORCED),)}, [], None, "forced \\x1b[31m"),
    "no such dtype": (
        2,
        {},
        ["--dtype", "fp64"],
        None,
        "unknown value for --dtype: fp64\nhint: choose one of fp32, fp16, bf16, float32",
    ),
    "a shard is short": (3, {}, [], shorten, "model-00002-of-00003.safetensors is truncated: tensor "),
    "config.json is broken": (3, {}, [], break_config, "config.json is not JSON"),
    "no such model": (4, {}, [], unknown_model, "no model family covers config.json's model_type 'nonesuch'"),
    "storage fails": (5, {"prepare": limit_files}, [], None, "File too large"),
    "a small budget": (6, {}, ["--max-mem", "1M"], None, "give --max-mem"),
}


@pytest.mark.parametrize("kind", ["directory", "ckpt"])
@pytest.mark.parametrize("what", FAILURES)
def test_a_failure_leaves_nothing_and_the_old_intact(what: str, kind: str, tmp_path: Path) -> None:
    code, how, words, spoil, message = FAILURES[what]
    source = running.llama(tmp_path / "source")
    old = tmp_path / ("old.ckpt" if kind == "ckpt" else "old")
    streamconv.convert(source, old, dtype="fp32")
    if spoil:
        spoil(source)
    before = tree(tmp_path)
    for dest in (old.with_name("new" + old.suffix), old):
        ended = run("convert", source, dest, *words, "--overwrite", "--quiet", **how)
        assert ended.code == code, ended.err
        assert message in ended.err
        assert ended.err.startswith("error: ")
        assert ended.out == ""
        assert tree(tmp_path) == before


def test_done_is_0(tmp_path: Path) -> None:
    source = running.llama(tmp_path / "source")
    ended = run("convert", source, tmp_path / "dest")
    assert ended.code == 0
    assert "wrote 30 tensors" in ended.out
    assert "model    llama" in ended.err


def test_a_difference_is_7(tmp_path: Path) -> None:
    source, dest = running.llama(tmp_path / "source"), tmp_path / "dest"
    streamconv.convert(source, dest)
    assert run("verify", dest).code == run("verify", source, dest).code == 0
    running.flip(next(dest.glob("*.safetensors")), -1 + 9000)
    before = tree(tmp_path)
    for words in ([dest], [source, dest]):
        ended = run("verify", *words, "--quiet")
        assert ended.code == 7
        assert "ms-model-00001-of-00001.safetensors" in ended.err
        assert ended.out == ""
    assert tree(tmp_path) == before


@pytest.mark.parametrize("name", ["dest", "dest.ckpt"])
def test_a_destination_that_exists_is_8(name: str, tmp_path: Path) -> None:
    source, dest = running.llama(tmp_path / "source"), tmp_path / name
    streamconv.convert(source, dest)
    before = tree(tmp_path)
    ended = run("convert", source, dest, "--dtype", "fp16", "--quiet")
    assert ended.code == 8
    assert "--overwrite" in ended.err
    assert tree(tmp_path) == before
    assert run("convert", source, dest, "--dtype", "fp16", "--overwrite", "--quiet").code == 0
    assert tree(tmp_path) != before


def on_record(dest: Path) -> bool:
    """Whether the run to `dest` has something on record."""
    journal = dest.with_name(f"{dest.name}.partial.streamconv")
    return journal.exists() and any(word in journal.read_bytes() for word in (b'["box",', b'["outputs",'))


@pytest.mark.parametrize(
    ("name", "number", "old"),
    [  # every two of them meet
        *(("dest", signal.SIGINT, False), ("dest", signal.SIGTERM, True), ("dest", signal.SIGHUP, False)),
        *(("dest.ckpt", signal.SIGINT, True), ("dest.ckpt", signal.SIGTERM, False), ("dest.ckpt", signal.SIGHUP, True)),
    ],
)
def test_a_signal_ends_the_run_and_the_same_command_resumes(
    name: str, number: signal.Signals, old: bool, tmp_path: Path
) -> None:
    source, dest = running.mixtral(tmp_path / "source"), tmp_path / name
    if old:
        streamconv.convert(source, dest, dtype="fp32")
    before = tree(tmp_path)
    words = ("convert", source, dest, "--overwrite", "--workers", 1)
    process = running.start(*words, "--quiet", faults=(SLOWER,))
    running.wait_until(lambda: on_record(dest), process)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number, err
    said = {signal.SIGINT: b"interrupted", signal.SIGTERM: b"terminated", signal.SIGHUP: b"hung up"}[number]
    assert re.fullmatch(
        rb"error: %s\n.* of [0-9.]+ MiB saved in .*/%s\.partial; run the same conversion again to resume, or add "
        rb"--restart to start over\n" % (said, name.encode()),
        err,
    )
    assert out == b""
    assert {path: content for path, content in tree(tmp_path).items() if ".partial" not in path} == before
    again = run(*words)
    assert again.code == 0, again.err
    assert re.search(r"resuming: .* of [0-9.]+ MiB already written", again.err)
    assert " from an interrupted run, to " in again.out
    other = tmp_path / "undisturbed" / name
    other.parent.mkdir()
    streamconv.convert(source, other)
    assert (tree(dest) if name == "dest" else dest.read_bytes()) == (
        tree(other) if name == "dest" else other.read_bytes()
    )
    assert not list(tmp_path.glob("*partial*"))


def stuck(folder: Path, seconds: float) -> tuple[Fault, ...]:
    """Reading tensors takes that long, and says when it begins."""
    return (("read_into", "stuck", seconds, str(folder / "stuck")),)


def test_a_signal_before_anything_is_on_record_leaves_nothing(tmp_path: Path) -> None:
    source, dest = running.llama(tmp_path / "source"), tmp_path / "dest"
    before = tree(tmp_path)
    process = running.start("convert", source, dest, "--quiet", faults=stuck(tmp_path, 0.5))
    running.wait_until((tmp_path / "stuck").exists, process)
    (tmp_path / "stuck").unlink()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    (tmp_path / "stuck").unlink(missing_ok=True)
    assert process.returncode == 130
    assert err == b"error: interrupted\nno partial output was kept\n"
    assert tree(tmp_path) == before


@pytest.mark.parametrize("signals", [1, 2])
def test_a_run_that_is_stuck_is_ended_all_the_same(signals: int, tmp_path: Path) -> None:
    source, dest = running.llama(tmp_path / "source"), tmp_path / "dest"
    process = running.start("convert", source, dest, "--quiet", faults=stuck(tmp_path, 120))
    running.wait_until((tmp_path / "stuck").exists, process)
    process.send_signal(signal.SIGINT)
    if signals == 2:
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert (b"stopped at once" if signals == 2 else b"during a slow operation") in err
    assert b"completed work is saved; run the same command to resume" in err
    assert run("convert", source, dest, "--quiet").code == 0
    assert streamconv.verify(dest, source=source)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_signals_that_are_ignored_stay_ignored(number: signal.Signals, tmp_path: Path) -> None:
    """In background jobs, and under nohup."""
    source, dest = running.llama(tmp_path / "source"), tmp_path / "dest"
    process = subprocess.Popen(
        running.command("convert", source, dest, "--quiet", faults=(SLOW,)),
        preexec_fn=lambda: signal.signal(number, signal.SIG_IGN),  # noqa: PLW1509
        env=running.environment(),
        cwd=nowhere(),
        stdout=subprocess.PIPE,
    )
    running.wait_until(dest.with_name("dest.partial").exists, process)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == 0


def test_a_run_after_a_killed_one_resumes(tmp_path: Path) -> None:
    source, dest = running.mixtral(tmp_path / "source"), tmp_path / "dest"
    streamconv.convert(source, tmp_path / "other")
    process = running.start("convert", source, dest, "--workers", 1, "--quiet", faults=(SLOWER,))
    running.wait_until(lambda: on_record(dest), process)
    process.kill()
    process.communicate()
    (tmp_path / "dest.partial" / "left-over").mkdir()
    assert not dest.exists()
    done = run("convert", source, dest, "--quiet", "--json")
    assert done.code == 0
    report = json.loads(done.out)
    assert report["resumed_bytes"] > 0
    assert report["resumed_bytes"] + report["written_bytes"] == report["total_bytes"]
    assert tree(dest) == tree(tmp_path / "other")
    assert not list(tmp_path.glob("*partial*"))


def test_restart_begins_again(tmp_path: Path) -> None:
    source, dest = running.llama(tmp_path / "source"), tmp_path / "dest"
    process = running.start("convert", source, dest, "--workers", 1, "--quiet")
    running.wait_until(lambda: on_record(dest), process)
    process.kill()
    process.communicate()
    refused = run("convert", source, dest, "--dtype", "fp16", "--quiet")
    assert refused.code == 8
    assert "--dtype was not given, is fp16" in refused.err
    assert "to resume it, repeat its source and options; to discard it, add --restart" in refused.err
    done = run("convert", source, dest, "--dtype", "fp16", "--restart", "--quiet", "--json")
    assert json.loads(done.out)["resumed_bytes"] == 0
    assert streamconv.verify(dest, source=source)
    assert not list(tmp_path.glob("*partial*"))


@pytest.mark.parametrize("name", ["dest", "dest.ckpt"])
def test_two_runs_to_one_destination(name: str, tmp_path: Path) -> None:
    source, dest, go = running.llama(tmp_path / "source"), tmp_path / name, tmp_path / "go"
    last_step = ("rename exchange", "held", str(go), ".trial")
    first = running.start("convert", source, dest, "--workers", 1, "--quiet", faults=(last_step,))
    running.wait_until(lambda: on_record(dest), first)
    second = run("convert", source, dest, "--quiet")
    assert second.code == 8
    assert f"is being written by process {first.pid} on " in second.err
    go.touch()
    assert first.wait(timeout=60) == 0
    assert golden.found(dest)


def test_convert_verifies_in_the_same_go(tmp_path: Path) -> None:
    source, dest = running.llama(tmp_path / "source"), tmp_path / "dest"
    done = run("convert", source, dest, "--verify")
    assert done.code == 0
    assert "verified: read back from disk, byte-for-byte identical to the source" in done.out
    assert tree(dest) == tree(streamconv.convert(source, tmp_path / "other").prepared.destination.path)


def test_an_unfinished_conversion_is_no_source(tmp_path: Path, capsys: Any) -> None:
    """What is not written of it yet is zeros."""
    source, dest = running.llama(tmp_path / "source"), tmp_path / "dest"
    process = running.start("convert", source, dest, "--workers", 1, "--quiet")
    running.wait_until(lambda: on_record(dest), process)
    process.kill()
    process.communicate()
    partial = tmp_path / "dest.partial"
    (tmp_path / "link").symlink_to(partial)
    shard = next(partial.glob("*.safetensors"))
    for path in (partial, shard, tmp_path / "link"):
        for words in (("inspect", path), ("convert", path, tmp_path / "back", "--reverse"), ("diff", source, path)):
            refused = call(capsys, *words)
            assert refused.code == 3
            assert "is an unfinished conversion: its journal dest.partial.streamconv is next to it" in refused.err
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize("command", ["plan", "convert"])
def test_a_destination_that_cannot_be_written_is_refused_first(command: str, tmp_path: Path, capsys: Any) -> None:
    source = running.tiny(tmp_path / "source")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "x").touch()
    before = tree(tmp_path)
    for dest, code in ((source, 8), (tmp_path / "taken", 8), (tmp_path / "nowhere" / "x", 2)):
        refused = call(capsys, command, source, dest)
        assert (refused.code, refused.out) == (code, "")
        assert refused.err.startswith("error: ")
    assert tree(tmp_path) == before


def test_a_result_is_complete_though_its_report_cannot_be_written(tmp_path: Path) -> None:
    source, dest = running.tiny(tmp_path / "source"), tmp_path / "dest"
    with Path("/dev/full").open("w") as full:
        command = running.command("convert", source, dest, "--quiet")
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, env=running.environment(), check=False)
    assert done.returncode == 5
    assert b"dest is complete, but its report cannot be written: No space left on device" in done.stderr
    assert streamconv.verify(dest, source=source)


def test_what_contradicts_itself_or_has_no_effect_is_refused(tmp_path: Path, capsys: Any) -> None:
    source = running.tiny(tmp_path / "source")
    twice = call(capsys, "plan", source, tmp_path / "x", "-o", "qkv_concat=true", "-o", "qkv_concat=false")
    assert twice.code == 2
    assert "-o qkv_concat is given twice, with different values" in twice.err
    for name in ("x.CKPT", "x.gguf", "x.safetensors", "x.Pt"):
        assert call(capsys, "plan", source, tmp_path / name).code == 2, name
    assert "hint: see streamconv diff --help" in call(capsys, "diff", source).err


def test_what_the_storage_did_not_keep_gets_no_name(tmp_path: Path) -> None:
    """A bit changes between writing and reading back."""
    source, dest = running.llama(tmp_path / "source"), tmp_path / "dest"
    before = tree(tmp_path)
    done = run("convert", source, dest, "--verify", "--quiet", faults=(("drop_cache", "rot", ".partial", 9000),))
    assert done.code == 7
    assert re.search(r"differs from the source's conversion at byte 9000 of the file \(byte \d+ of tensor ", done.err)
    assert "the storage did not keep what was written to it" in done.err
    assert "no partial output was kept" in done.err
    assert tree(tmp_path) == before


def test_the_table_of_codes_names_all_that_were_met_here() -> None:
    assert set(EXIT_CODES) == {0, *(failure[0] for failure in FAILURES.values()), 7, 8, 129, 130, 143}


# -- storage -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path):
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("a file system of a fixed size needs the right to mount one")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("name", ["dest", "dest.ckpt"])
def test_a_full_disk(name: str, tmp_path: Path, small_disk: Path) -> None:
    source = running.llama(tmp_path / "source")
    words = ["convert", source, small_disk / name, "--dtype", "fp32", "--quiet"]
    (small_disk / "ballast").write_bytes(bytes(500_000))
    checked = run(*words)
    assert checked.code == 5
    assert "nothing was written" in checked.err
    assert [p.name for p in small_disk.iterdir()] == ["ballast"]
    filled = run(*words, faults=(ENDLESS,))
    assert filled.code == 5
    assert "No space left on device\n" in filled.err
    assert not (small_disk / name).exists()
    (small_disk / "ballast").unlink()
    assert run(*words, "--workers", 1).code == 0
    assert streamconv.verify(small_disk / name, source=source)
    assert not list(small_disk.glob("*partial*"))


def test_the_manifest_of_a_ckpt_can_be_what_does_not_fit(tmp_path: Path) -> None:
    source, dest = running.scalars(tmp_path / "source.safetensors", 50), tmp_path / "dest.ckpt"
    streamconv.convert(source, dest, model="raw")
    size = dest.stat().st_size
    assert (tmp_path / "dest.ckpt.streamconv.json").stat().st_size > size
    before = tree(tmp_path)
    ended = run(
        *("convert", source, dest, "--model", "raw", "--dtype", "fp16", "--overwrite", "--quiet"),
        prepare=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)),
    )
    assert ended.code == 5
    assert tree(tmp_path) == before


def test_a_report_that_cannot_be_written(tmp_path: Path) -> None:
    source = running.tiny(tmp_path / "source")
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            running.command("inspect", source),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            env=running.environment(),
            cwd=nowhere(),
        )
    assert done.returncode == 5
    assert (
        done.stderr == "error: cannot write the report: No space left on device\n"
        "hint: free some space and run the same conversion again\n"
    )


# -- pipes and terminals -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_reader_that_has_gone_stops_no_work(stream: str, tmp_path: Path) -> None:
    source, dest = running.llama(tmp_path / "source"), tmp_path / "dest"
    read, write = os.pipe()
    os.close(read)
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, stream: write}
    done = subprocess.run(
        running.command("convert", source, dest),
        check=False,
        env=running.environment(),
        cwd=nowhere(),
        timeout=60,
        **streams,
    )
    os.close(write)
    assert done.returncode == 0
    assert b"Traceback" not in (done.stderr or b"")
    assert golden.found(dest)


def unread(*words: object) -> tuple[int, bytes]:
    """Exit code and messages of a command whose output nobody reads."""
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        running.command(*words),
        stdout=write,
        stderr=subprocess.PIPE,
        check=False,
        env=running.environment(),
        cwd=nowhere(),
        timeout=60,
    )
    os.close(write)
    assert b"Traceback" not in done.stderr and b"Exception" not in done.stderr
    return done.returncode, done.stderr


@pytest.mark.parametrize("words", [[], ["--json"]], ids=str)
def test_a_difference_is_7_though_nobody_reads_which(words: list[str], tmp_path: Path) -> None:
    one, other = running.tiny(tmp_path / "one"), tmp_path / "other"
    streamconv.convert(one, other)
    assert unread("diff", one, other, "--quiet", *words)[0] == 7
    assert unread("diff", one, one, "--quiet", *words)[0] == 0


def test_a_family_that_does_not_fit_is_4_though_nobody_reads_why(tmp_path: Path) -> None:
    code, err = unread("models", "check", "vit", running.tiny(tmp_path / "source"))
    assert code == 4, err
    assert b"the family does not fit" in err


AT_THE_END = """
import os, signal
from streamconv.cli import {module}
def signalled(*arguments, call={module}.{call}, **more):
    os.kill(os.getpid(), signal.{number})
    return call(*arguments, **more)
{module}.{call} = signalled
"""


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM", "SIGHUP"])
@pytest.mark.parametrize("where", ["report", "flush"])
def test_a_signal_after_the_result_is_in_place_changes_nothing(where: str, number: str, tmp_path: Path) -> None:
    source, dest = running.tiny(tmp_path / "source"), tmp_path / "dest"
    module, call = ("commands", "click.echo") if where == "report" else ("main", "flush_quietly")
    ended = run(
        *("convert", source, dest, "--quiet", "--json"),
        before=AT_THE_END.format(module=module, call=call, number=number),
    )
    assert ended.code == 0, ended.err
    assert ended.err == ""
    assert json.loads(ended.out)
    assert golden.found(dest)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_the_command_line_loads(number: signal.Signals) -> None:
    """What is imported takes longer than anything else of a short command."""
    hook = (
        "import os, sys\n"
        "class Hook:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'click.core':\n"
        f"            sys.meta_path.remove(self); os.kill(os.getpid(), {int(number)})\n"
        "sys.meta_path.insert(0, Hook())\n"
    )
    ended = run("models", before=hook)
    assert ended.code == 128 + number
    assert ended.out == "" and ended.err.startswith("error: ")


def test_a_message_that_nobody_hears(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        running.command("inspect", tmp_path / "nothing"),
        check=False,
        env=running.environment(),
        cwd=nowhere(),
        stderr=write,
    )
    os.close(write)
    assert done.returncode == 3


def test_no_carriage_return_without_a_terminal(tmp_path: Path) -> None:
    ended = run("convert", running.llama(tmp_path / "source"), tmp_path / "dest")
    assert "\r" not in ended.out + ended.err
    assert "\x1b" not in ended.out + ended.err


def test_quiet_is_silent(tmp_path: Path) -> None:
    source, dest = running.llama(tmp_path / "source"), tmp_path / "dest"
    assert run("convert", source, dest, "--quiet").err == ""
    assert run("verify", dest, "--quiet").err == ""
    assert run("verify", source, dest, "--quiet").err == ""


# -- JSON --------------------------------------------------------------------------------------------------------------


def test_every_report_is_json_alone(tmp_path: Path, capsys) -> None:
    source, dest = running.llama(tmp_path / "source"), tmp_path / "dest"
    planned = call(capsys, "plan", source, dest, "--json", "--dtype", "bf16")
    assert planned.err == ""
    plan = json.loads(planned.out)
    assert not dest.exists()
    converted = call(capsys, "convert", source, dest, "--json", "--dtype", "bf16")
    report = json.loads(converted.out)
    assert report["digest"] == plan["digest"]
    assert report["dtype"] == "BF16"
    assert report["files"] == plan["files"]
    assert {n: (dest / n).stat().st_size for n in report["files"]} == report["files"]
    sizes = (sum((dest / n).stat().st_size for n in names) for names in (report["files"], ["param_name_map.json"]))
    assert report["written_bytes"] == report["total_bytes"] == sum(sizes)
    assert report["read_bytes"] == report["source_bytes"]
    assert report["peak_bytes"] > 0
    assert {t["name"]: (t["dtype"], tuple(t["shape"])) for t in plan["tensors"]} == {
        name: (dtype, shape) for name, (dtype, shape, _) in golden.found(dest).items()
    }
    verified = json.loads(call(capsys, "verify", dest, "--json").out)
    assert verified["tensors"] == len(plan["tensors"])
    assert verified["bytes"] == report["written_bytes"]
    compared = json.loads(call(capsys, "verify", source, dest, "--json").out)
    assert (compared["tensors"], compared["files"]) == (verified["tensors"], verified["files"])
    assert len(json.loads(call(capsys, "inspect", dest, "--json").out)["tensors"]) == len(plan["tensors"])
    assert [f["name"] for f in json.loads(call(capsys, "models", "--json").out)] == [f.name for f in families()]
    assert json.loads(call(capsys, "models", "llama", "--json").out)[0]["options"][0]["name"] == "qkv_concat"


def test_an_error_leaves_stdout_empty(tmp_path: Path, capsys) -> None:
    for words in (["convert", "nothing", "dest"], ["plan", "nothing", "dest"], ["inspect", "nothing"], ["verify", "x"]):
        ended = call(capsys, *words, "--json")
        assert (ended.code, ended.out) == (3, "")


# -- words -------------------------------------------------------------------------------------------------------------

USAGE = {
    "no command": ([], "Missing command\nhint: see streamconv --help"),
    "a command misspelt": (["convret"], "unknown command: convret\nhint: did you mean convert?"),
    "no such command": (["zzz"], "unknown command: zzz\nhint: see streamconv --help"),
    "an option misspelt": (["convert", "S", "D", "--modle", "llama"], "Did you mean '--model'?\nhint: see streamconv"),
    "no such option": (["convert", "S", "D", "--zzz"], "--zzz"),
    "a number": (["convert", "S", "D", "--workers", "many"], "'many' is not a valid integer\nhint: see"),
    "no worker": (["convert", "S", "D", "--workers", "0"], "--workers must be between 1 and 256: 0"),
    "no SOURCE": (["convert"], "SOURCE is missing"),
    "no DEST": (["convert", "S"], "DEST is missing"),
    "an empty DEST": (["convert", "S", ""], "DEST is missing"),
    "SOURCE twice": (["convert", "S", "D", "--input_path", "S"], "given twice: as an argument and as --input_path"),
    "DEST twice": (["convert", "S", "D", "--output_path", "D"], "given twice: as an argument and as --output_path"),
    "too many": (["convert", "S", "D", "E"], "extra argument"),
    "a model misspelt": (["convert", "S", "D", "--model", "lama"], "did you mean llama?"),
    "no such model": (["convert", "S", "D", "--model", "zzz"], "the models are baichuan2, blip2, "),
    "models misspelt": (["models", "mixtrl"], "did you mean mixtral?"),
    "an option of the family": (["convert", "S", "D", "-o", "qkv_conat=true"], "did you mean qkv_concat?"),
    "an option of none": (["convert", "S", "D", "--model", "whisper", "-o", "a=b"], "whisper takes no options"),
    "a value": (["convert", "S", "D", "-o", "qkv_concat=maybe"], "qkv_concat=maybe: not one of false, true, blocks"),
    "no value": (["convert", "S", "D", "-o", "qkv_concat"], "write -o NAME=VALUE"),
    "an empty value": (["convert", "S", "D", "-o", "qkv_concat="], "write -o NAME=VALUE"),
    "a flag without value": (["convert", "S", "D", "--qkv_concat"], "--qkv_concat needs a value"),
    "a flag before a flag": (["convert", "S", "D", "--qkv_concat", "--quiet"], "--qkv_concat needs a value"),
    "a dtype": (["convert", "S", "D", "--dtype", "float64"], "unknown value for --dtype: float64"),
    "a format": (
        ["convert", "S", "D", "--format", "onnx"],
        "unknown value for --format: onnx\nhint: choose safetensors, ckpt, hf or torch",
    ),
    "ckpt to a directory": (["convert", "S", "D", "--format", "ckpt"], "DEST must end in .ckpt for --format ckpt"),
    "a directory to .ckpt": (["convert", "S", "D.ckpt", "--format", "safetensors"], "not end in .ckpt"),
    "MindSpore names as hf": (["convert", "S", "D", "--format", "hf"], "use --model raw"),
    "crc of a directory": (
        ["convert", "S", "D", "--crc"],
        "only a .ckpt file can have a CRC, and DEST does not end in .ckpt",
    ),
    "a size": (["convert", "S", "D", "--max-mem", "much"], "--max-mem 'much' is not a size; write for example 16G"),
    "a shard size": (["convert", "S", "D", "--max-shard-size", "-1"], "--max-shard-size '-1' is not a size"),
    "no bytes": (["convert", "S", "D", "--max-mem", "0"], "--max-mem '0' is out of range"),
    "io": (
        ["convert", "S", "D", "--io", "mmap"],
        "unknown value for --io: mmap\nhint: choose one of auto, read, direct",
    ),
    "a config": (["convert", "S", "D", "--config", "nothing.json"], "--config nothing.json: no such file or directory"),
    "a file as DEST": (
        ["convert", "S", "D.safetensors"],
        "a destination must be a directory or a file that ends in .ckpt",
    ),
    "the root": (["convert", "S", "/"], "is the root of the file system"),
    "no parent": (["convert", "S", "no/where"], "no is not a directory\nhint: create it first"),
    "verify without": (["verify"], "DEST"),
    "inspect without": (["inspect"], "PATH"),
    "diff without": (["diff", "S"], "B"),
    "ANSI in a command": (["\x1b[31mred"], "\\x1b[31mred"),
    "ANSI in an option": (["convert", "S", "D", "--\x1b[31m"], "\\x1b[31m"),
    "ANSI in a value": (["convert", "S", "D", "--workers", "\x1b[31m"], "\\x1b[31m"),
    "ANSI in a model": (["convert", "S", "D", "--model", "\x1b[31m"], "\\x1b[31m"),
    "ANSI in a path": (["convert", "S", "\x1b[31m/x"], "\\x1b[31m is not a directory"),
}


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sources")
    running.llama(folder / "S")
    return folder


@pytest.mark.parametrize("what", USAGE)
def test_wrong_usage_says_what_and_what_next(what: str, sources: Path, capsys, monkeypatch) -> None:
    words, message = USAGE[what]
    monkeypatch.chdir(sources)
    before = tree(sources)
    ended = call(capsys, *words)
    assert ended.code == 2, ended.err
    assert message in ended.err
    assert "\nerror: " in "\n" + ended.err
    assert "\x1b" not in ended.err
    assert ".;" not in ended.err
    assert ended.out == ""
    assert tree(sources) == before


def test_names_from_a_file_are_escaped(tmp_path: Path, capsys) -> None:
    source = tmp_path / "red\x1b[31m"
    source.mkdir()
    header = b'{"evil\\u001b[2J":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    header += b" " * (-len(header) % 8)
    (source / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"abcd")
    for words in (
        ["inspect", source],
        ["plan", source, tmp_path / "dest", "--model", "raw"],
        ["convert", source, tmp_path / "dest", "--model", "llama"],
        ["convert", source, tmp_path / "dest", "--model", "raw"],
        ["verify", tmp_path / "dest"],
    ):
        ended = call(capsys, *words)
        assert "\x1b" not in ended.out + ended.err
    running.flip(shard := next((tmp_path / "dest").glob("*.safetensors")), shard.stat().st_size - 1)
    ended = call(capsys, "verify", tmp_path / "dest")
    assert (ended.code, "\x1b" in ended.err) == (7, False)
    assert "evil\\x1b[2J" in ended.err


def test_a_reverse_that_needs_a_config_says_so(tmp_path: Path, capsys) -> None:
    source = running.tiny(tmp_path / "source")
    assert call(capsys, "convert", source, tmp_path / "fused.ckpt", "-o", "qkv_concat=true").code == 0
    (tmp_path / "fused.ckpt.streamconv.json").unlink()
    words = ["convert", tmp_path / "fused.ckpt", tmp_path / "back", "--reverse"]
    ended = call(capsys, *words)
    assert (ended.code, "--config FILE" in ended.err) == (2, True)
    ended = call(capsys, *words, "--model", "llama", "-o", "qkv_concat=true")
    assert ended.code == 2
    assert "num_attention_heads" in ended.err
    assert "--config FILE" in ended.err
    ended = call(capsys, *words, "--config", source / "config.json")
    assert ended.code == 2
    assert "-o qkv_concat=true or -o qkv_concat=blocks" in ended.err
    assert call(capsys, *words, "--config", source, "-o", "qkv_concat=true").code == 0
    assert golden.found(tmp_path / "back") == golden.found(source)


def test_mindformers_spelling(tmp_path: Path, capsys) -> None:
    source = running.tiny(tmp_path / "source")
    for value in ("true", "True", "false"):
        words = ["convert", "--input_path", source, "--output_path", tmp_path / value, f"--qkv_concat={value}"]
        assert call(capsys, *words).code == 0
        names = golden.found(tmp_path / value)
        assert any("w_qkv" in name for name in names) == (value != "false")
    words = ["convert", "--input_path", tmp_path / "true", "--output_path", tmp_path / "back", "--reversed"]
    assert call(capsys, *words, "--qkv_concat", "true").code == 0
    assert golden.found(tmp_path / "back") == golden.found(source)


@pytest.mark.parametrize("words", [[], ["convert"], ["plan"], ["verify"], ["diff"], ["inspect"], ["models"], ["demo"]])
def test_help(words: list[str], capsys) -> None:
    ended = call(capsys, *words, "--help")
    assert ended.code == 0
    assert "Usage:" in ended.out
    assert ended.err == ""
    if words == ["convert"]:
        assert "Examples:" in ended.out
        assert "--dtype bf16 --max-mem 2G" in ended.out


def test_help_is_cheap() -> None:
    code = (
        "import sys\nfrom streamconv.cli import commands\n"
        "commands.cli.main(['convert', '--help'], standalone_mode=False)\n"
        "assert not {'torch', 'mindspore', 'transformers', 'safetensors.torch'} & set(sys.modules)"
    )
    subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, env=running.environment(), cwd=nowhere()
    )


def test_version(capsys) -> None:
    ended = call(capsys, "--version")
    assert ended.code == 0
    assert "0." in ended.out


def test_the_examples_of_the_help_work(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    running.tiny(Path("Mixtral-8x7B"), model_type="mixtral", num_local_experts=3)
    running.tiny(Path("Llama-3.1-8B"))
    lines = [line.split() for line in commands._CONVERT_HELP.splitlines() if line.startswith("  streamconv ")]
    assert len(lines) == 5
    for words in lines:
        if words[2] == "./old.ckpt":
            Path("llama.ckpt").rename("old.ckpt")
        assert call(capsys, *words[1:]).code == 0


def test_memory_refused_by_the_system_is_6() -> None:
    assert cli._explained(MemoryError())[0] == 6


def test_a_fault_shows_where_on_demand(tmp_path: Path) -> None:
    source = running.tiny(tmp_path / "source")
    done = subprocess.run(
        running.command("convert", source, tmp_path / "dest", faults=(("write", *FORCED),)),
        capture_output=True,
        text=True,
        env=running.environment({"STREAMCONV_TRACEBACK": "1"}),
        cwd=nowhere(),
        check=False,
    )
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert not (tmp_path / "dest").exists()
