"""docs/adding-a-model.md does what it says: its code is run here, as files of a user's and as an installed package."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

import streamconv
from streamconv import testing as samples
from streamconv.errors import UsageError
from streamconv.families import load
from streamconv.families import registry as families
from support import ROOT, golden
from support.helpers import text_of
from support.running import run

PAGE = (ROOT / "docs" / "adding-a-model.md").read_text()
PHI3, TEST, ACME = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
COMMANDS = re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)[0].splitlines()

MOE = {
    "model_type": "acme_moe",
    "vocab_size": 11,
    "d_model": 18,
    "n_layers": 2,
    "n_heads": 6,
    "n_kv_heads": 3,
    "n_experts": 5,
    "d_expert": 7,
}


@pytest.fixture
def page(tmp_path, monkeypatch) -> Path:
    """A user's directory with the page's files, and a small Phi-3."""
    monkeypatch.chdir(tmp_path)
    Path("phi3.py").write_text(PHI3)
    Path("acme_moe.py").write_text(ACME)
    space: dict[str, dict[str, object]] = {}
    exec(TEST, space)
    samples.write_hf(Path("Phi-3-mini"), space["CONFIG"], samples.hf_specs(load("phi3.py"), space["CONFIG"]), 1 << 20)
    return tmp_path


def test_it_takes_forty_lines_or_fewer() -> None:
    lines = [line for line in (PHI3 + TEST).splitlines() if line.strip()]
    assert len(lines) <= 40


def test_the_page_s_test_passes(page) -> None:
    space: dict = {}
    exec(TEST, space)
    (page / "run").mkdir()
    space["test_it_comes_back"](page / "run")


@pytest.mark.slow
def test_the_page_s_commands_run(page) -> None:
    for command in COMMANDS:
        program, *arguments = shlex.split(command)
        assert program == "streamconv"
        result = run(*arguments, cwd=page)
        assert result.code == 0, result.err
    assert golden.found(page / "phi3-hf") == golden.found(page / "Phi-3-mini")
    assert golden.found(page / "phi3-ms").keys() != golden.found(page / "Phi-3-mini").keys()


@pytest.mark.parametrize("use_gmm", [True, False])
def test_the_second_example_converts_both_ways(page, use_gmm) -> None:
    family = load("acme_moe.py")
    samples.write_hf(page / "hf", MOE, samples.hf_specs(family, MOE), 1 << 20)
    options = {"use_gmm": use_gmm}
    streamconv.convert(page / "hf", page / "ms", family="acme_moe.py", options=options, max_mem="8G")
    stack = streamconv.open(page / "ms")["model.layers.1.feed_forward.ffn.w1.weight"]
    assert stack.shape == ((5, 18, 7) if use_gmm else (5, 7, 18))
    streamconv.verify(page / "ms", source=page / "hf", family="acme_moe.py", max_mem="8G")
    streamconv.convert(page / "ms", page / "back", family="acme_moe.py", reverse=True, max_mem="8G")
    assert golden.found(page / "back") == golden.found(page / "hf")


@pytest.mark.slow
def test_an_installed_package_s_family_is_listed_and_recognised(page, monkeypatch) -> None:
    """As pip installs it: a module, and metadata beside it that names the entry point."""
    home = page / "site"
    (home / "acme-1.0.dist-info").mkdir(parents=True)
    (home / "acme_models.py").write_text(ACME)
    (home / "acme-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1.0\n")
    entry = "[streamconv.families]\nacme-moe = acme_models:FAMILY\n"
    (home / "acme-1.0.dist-info" / "entry_points.txt").write_text(entry)
    samples.write_hf(page / "hf", MOE, samples.hf_specs(load("acme_moe.py"), MOE), 1 << 20)
    path = {"PYTHONPATH": str(home)}
    listed = run("models", env=path)
    assert "acme-moe" in listed.out
    result = run("convert", str(page / "hf"), str(page / "ms"), "--json", "--quiet", env=path)
    assert json.loads(result.out)["model"] == "acme-moe", result.err
    (home / "acme-1.0.dist-info" / "entry_points.txt").write_text(entry.replace("FAMILY", "HF"))
    broken = run("models", env=path)
    assert broken.code == 2
    assert "acme_models:HF, offered under streamconv.families, is not a streamconv.families.Family" in broken.err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("FAMILY = 3", "defines no FAMILY = Family"),
        ("x = 1\nraise ValueError('no\\x1b')", r"cannot be loaded: ValueError: no\\x1b, line 2"),
        ("def (", "cannot be loaded: SyntaxError"),
        ("import nonexistent_thing", "ModuleNotFoundError: No module named"),
    ],
)
def test_a_family_file_that_is_none(tmp_path, text, said) -> None:
    (tmp_path / "own.py").write_text(text)
    with pytest.raises(UsageError, match=said) as caught:
        load(tmp_path / "own.py")
    assert text_of(caught.value)


def test_a_family_file_that_is_not_there(tmp_path) -> None:
    for name in ("gone.py", "folder", "notes.txt"):
        with pytest.raises(UsageError, match="no such Python file: "):
            load(tmp_path / name)


def test_a_family_and_another_model_s_name(page) -> None:
    with pytest.raises(UsageError, match=r'family="phi3\.py" defines phi3, not llama\nhint: omit model'):
        streamconv.plan("Phi-3-mini", "out", family="phi3.py", model="llama")
    assert families.find("llama")
