"""Which files go along with the weights, by the repositories that people have."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import streamconv
from streamconv import testing as samples
from streamconv.configs import companion_files
from streamconv.configs.companion_files import Found, goes_along
from streamconv.errors import DestinationError, SourceError
from streamconv.storage import disk
from streamconv.tensors.dtypes import BF16
from streamconv.tensors.refs import TensorSpec

#: What published repositories need to load with `trust_remote_code`, and what they are named after it.
REPOSITORIES = {
    "kimi-k2": "configuration_deepseek.py modeling_deepseek.py tokenization_kimi.py tiktoken.model "
    "tool_declaration_ts.py tokenizer_config.json chat_template.jinja LICENSE THIRD_PARTY_NOTICES.md",
    "baichuan2": "configuration_baichuan.py generation_utils.py quantizer.py tokenizer.model "
    "Community\tLicense\tfor\tBaichuan2.pdf",
    "qwen-vl": "visual.py qwen_generation_utils.py qwen.tiktoken SimSun.ttf NOTICE",
    "chatglm3": "quantization.py tokenization_chatglm.py tokenizer.model MODEL_LICENSE",
    "cogvlm2": "visual.py util.py tokenizer.json",
    "whisper": "normalizer.json vocab.json merges.txt preprocessor_config.json",
    "mistral": "tekken.json tokenizer_config.json params.json",
    "qwen2.5-vl": "video_preprocessor_config.json chat_template.json tokenizer.json",
    "deepseek-v3.2": "encoding/encoding_dsv32.py encoding/tests/test_input.json inference/model.py tokenizer.json",
    "templates": "additional_chat_templates/tool_use.jinja chat_template.jinja",
    "sentence-transformers": "modules.json 1_Pooling/config.json 2_Normalize/metadata.json README.md",
    "xlm": "sentencepiece.bpe.model dict.txt spiece.model special_tokens_map.json added_tokens.json",
    "readme": "README.md README_zh.md LICENCE USE_POLICY.md generation_config.json",
}
STAY = {
    "assets/logo.png": "no tokenizer, processor or model code is known to need it",
    "runs/events.out.tfevents.1": "no tokenizer, processor or model code is known to need it",
    "trainer_state.json": "the state of a training run",
    "checkpoint-500": "holds weights",
    "original": "holds weights",
}
WEIGHTS = ["model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "rng_state.pth", "x.gguf"]


def model(folder: Path) -> Path:
    samples.write_hf(folder, {"model_type": "x"}, [TensorSpec("w.weight", BF16, (2, 2))], 1 << 20)
    return folder


def find(folder: Path) -> Found:
    return companion_files.find(folder, is_repository=True)


def touch(folder: Path, names: list[str]) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"{name}\n")
    return folder


@pytest.mark.parametrize("name", REPOSITORIES)
def test_all_that_a_repository_needs_goes_along(tmp_path: Path, name: str) -> None:
    names = [word.replace("\t", " ") for word in REPOSITORIES[name].split(" ")]
    source = touch(model(tmp_path / name), names)
    plan = streamconv.plan(source, tmp_path / "hf", model="raw", format="hf", max_mem="8G")
    assert "left behind" not in str(plan)
    plan.run()
    for one in names:
        assert (tmp_path / "hf" / one).read_text() == f"{one}\n"
    streamconv.convert(source, tmp_path / "hf", model="raw", format="hf", max_mem="8G", overwrite=True)


def test_weights_and_what_describes_them_stay_and_the_rest_is_listed(tmp_path: Path) -> None:
    inside = ["original/consolidated.00.pth", "original/params.json", "checkpoint-500/model.safetensors"]
    touch(tmp_path, [*WEIGHTS, *inside, ".git/config", ".gitattributes", "config.json", "tokenizer.json"])
    touch(tmp_path, [name for name in STAY if "." in name])
    found = find(tmp_path)
    assert list(found.copies) == ["tokenizer.json"]
    assert found.left == STAY


def test_what_stays_is_in_the_plan(tmp_path: Path) -> None:
    source = touch(model(tmp_path / "source"), ["assets/logo.png"])
    plan = streamconv.plan(source, tmp_path / "hf", model="raw", format="hf", max_mem="8G")
    assert "left     1 left behind: assets/logo.png (no tokenizer" in str(plan)
    assert list(plan.to_json()["left"]) == ["assets/logo.png"]
    alone = streamconv.plan(source, tmp_path / "x.ckpt", model="raw", max_mem="8G")
    assert "left behind" not in str(alone)


def test_links(tmp_path: Path) -> None:
    """As in a snapshot of a cache: files are links; a folder that is one may lead anywhere, even back."""
    blobs = touch(tmp_path / "blobs", ["1"])
    home = tmp_path / "home"
    home.mkdir()
    (home / "tokenizer.json").symlink_to(blobs / "1")
    (home / "vocab.json").symlink_to(blobs / "nowhere")
    (home / "round").symlink_to(home)
    found = find(home)
    assert list(found.copies) == ["tokenizer.json"]
    assert found.left == {"round": "a link to a folder", "vocab.json": "not a regular file or a link to one"}


def test_what_a_download_left_stays(tmp_path: Path) -> None:
    found = find(touch(tmp_path, ["tokenizer.json", "tokenizer.json.aria2", "vocab.json.part"]))
    assert list(found.copies) == ["tokenizer.json"]
    assert found.left == dict.fromkeys(("tokenizer.json.aria2", "vocab.json.part"), "what a download left")


def test_what_is_no_companion_by_size_or_kind(tmp_path: Path, monkeypatch) -> None:
    touch(tmp_path, ["corpus.txt"])
    os.mkfifo(tmp_path / "fifo.json")
    monkeypatch.setattr(companion_files, "LARGEST", 3)
    assert find(tmp_path).left == {"corpus.txt": "larger than 3 B", "fifo.json": "not a regular file or a link to one"}


def test_a_tree_without_end_is_cut_off_and_the_top_comes_first(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(companion_files, "_MOST_ENTRIES", 3)
    found = find(touch(tmp_path, [*(f"data/{number}.py" for number in range(9)), "tokenizer.json", "z.py"]))
    assert list(found.copies) == ["tokenizer.json", "z.py", "data/0.py"]
    assert found.warnings == ("only 3 of the files next to the weights were looked at; the others stay behind",)


def test_what_cannot_be_listed_or_read_stays(tmp_path: Path, monkeypatch) -> None:
    """As lost+found at the root of a disk; tests may run as a user who may read all."""
    touch(tmp_path, ["lost+found/x.py", "secret.json", "tokenizer.json"])
    listdir, may_read = disk.listdir, disk.may_read

    def refusing(path) -> list[str]:
        if Path(path).name == "lost+found":
            raise PermissionError(13, "Permission denied", str(path))
        return listdir(path)

    monkeypatch.setattr(disk, "listdir", refusing)
    monkeypatch.setattr(disk, "may_read", lambda path: Path(path).name != "secret.json" and may_read(path))
    found = find(tmp_path)
    assert list(found.copies) == ["tokenizer.json"]
    assert found.left == {"lost+found": "cannot be listed: Permission denied", "secret.json": "may not be read"}


def test_what_fails_for_a_moment_is_no_reason_to_leave_a_tokenizer(tmp_path: Path, monkeypatch) -> None:
    touch(tmp_path, ["encoding/x.py", "tokenizer.json"])
    listdir = disk.listdir
    for name in (tmp_path.name, "encoding"):

        def failing(path, name=name) -> list[str]:
            if Path(path).name == name:
                raise OSError(5, "Input/output error", str(path))
            return listdir(path)

        monkeypatch.setattr(disk, "listdir", failing)
        with pytest.raises(SourceError, match="cannot list"):
            find(tmp_path)


def test_one_that_is_gone_when_it_is_copied_is_the_source_s_fault(tmp_path: Path) -> None:
    source = touch(model(tmp_path / "hf"), ["tokenizer.json"])
    plan = streamconv.plan(source, tmp_path / "out", model="raw", format="hf", max_mem="8G")
    (source / "tokenizer.json").unlink()
    with pytest.raises(SourceError, match=r"cannot open .*tokenizer\.json"):
        plan.run()
    os.mkfifo(source / "tokenizer.json")
    with pytest.raises(SourceError, match=r"tokenizer\.json is not a regular file but a FIFO"):
        plan.run()


def test_an_adapter_s_config_goes_along_with_an_adapter_alone(tmp_path: Path) -> None:
    specs = [TensorSpec("base_model.model.q_proj.lora_A.weight", BF16, (2, 2))]
    samples.write_hf(tmp_path / "peft", {}, specs, 1 << 20)
    touch(model(tmp_path / "hf"), ["adapter_config.json"])
    (tmp_path / "peft" / "adapter_config.json").write_text("{}")
    arguments = {"model": "raw", "format": "hf", "max_mem": "8G"}
    streamconv.convert(tmp_path / "peft", tmp_path / "a", **arguments)
    assert (tmp_path / "a" / "adapter_config.json").exists()
    plan = streamconv.plan(tmp_path / "hf", tmp_path / "b", **arguments)
    assert plan.companions.left == {"adapter_config.json": "describes an adapter"}


@pytest.mark.parametrize("name", ["a.PY", "LICENSE-CODE", "licence", "Notice.txt", "tokenizer.xyz", "x.jinja2"])
def test_names_that_go_along(name: str) -> None:
    assert goes_along(name)


@pytest.mark.parametrize("name", ["a.png", "model.safetensors", "notes.pdf", "train.sh", "x.parquet"])
def test_names_that_do_not(name: str) -> None:
    assert not goes_along(name)


@pytest.mark.parametrize(
    "foreign", ["photos/a.jpg", "src/train.py", "notes/thesis.md", "encoding/mine.py", ".vscode/x.json"]
)
def test_a_folder_that_streamconv_did_not_write_is_never_replaced(tmp_path: Path, foreign: str) -> None:
    source = touch(model(tmp_path / "source"), ["encoding/x.py", "LICENSE"])
    arguments = {"model": "raw", "format": "hf", "max_mem": "8G", "overwrite": True}
    streamconv.convert(source, tmp_path / "hf", **arguments)
    touch(tmp_path / "hf", ["encoding/__pycache__/x.pyc", ".gitattributes"])
    streamconv.convert(source, tmp_path / "hf", **arguments)
    touch(tmp_path / "hf", [foreign])
    with pytest.raises(DestinationError, match="belong to no checkpoint"):
        streamconv.convert(source, tmp_path / "hf", **arguments)
    assert (tmp_path / "hf" / foreign).exists()


def test_a_project_with_weights_in_it_is_never_replaced(tmp_path: Path) -> None:
    source = model(tmp_path / "source")
    touch(tmp_path / "project", ["model.safetensors", "train.py", "src/a.py"])
    with pytest.raises(DestinationError, match=r"belong to no checkpoint \(src\)"):
        streamconv.convert(source, tmp_path / "project", model="raw", format="hf", max_mem="8G", overwrite=True)
