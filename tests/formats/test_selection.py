"""Which files of a directory are the checkpoint: each rule alone, and their order."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from streamconv.errors import SourceError
from streamconv.formats import shards
from streamconv.formats.directory import Listing, list_directory
from streamconv.formats.header_room import HeaderRoom
from streamconv.formats.selection import RULES, Selection, ignored, select
from support.helpers import text_of

RULE = dict(RULES)
List = Callable[..., Listing]
INDEX = {"a": "m2.safetensors", "b": "m1.safetensors"}


@pytest.fixture
def listed(tmp_path: Path) -> List:
    """A directory of empty files, and of indices: name → tensor → file."""

    def make(*names: str, **indices: dict[str, str]) -> Listing:
        for name in names:
            (tmp_path / name).touch()
        for word, weight_map in indices.items():
            (tmp_path / getattr(shards, word)).write_bytes(shards.index_bytes(0, weight_map))
        return list_directory(tmp_path, HeaderRoom())

    return make


def test_an_index_of_safetensors(listed: List) -> None:
    rule = RULE["an index of safetensors files"]
    assert rule(listed("m1.safetensors")) is None
    assert rule(listed(MS_MAP=INDEX)) == Selection("safetensors", ["m1.safetensors", "m2.safetensors"], INDEX)
    assert rule(listed(HF_INDEX=INDEX)) == Selection("safetensors", ["m1.safetensors", "m2.safetensors"], INDEX)
    with pytest.raises(SourceError) as caught:
        rule(listed(HF_INDEX={"a": "m1.safetensors"}))
    assert "they describe different checkpoints; move one of the two" in text_of(caught.value)


def test_loose_safetensors(listed: List) -> None:
    rule = RULE["safetensors files"]
    assert rule(listed("a.ckpt", "adapter_model.safetensors", "consolidated.safetensors", ".x.safetensors")) is None
    assert rule(listed("model.fp16.safetensors")) == Selection("safetensors", ["model.fp16.safetensors"])
    assert rule(listed("b.safetensors", "a.safetensors")) == Selection(
        "safetensors", ["a.safetensors", "b.safetensors"]
    )


def test_torch_beside_ckpt(listed: List) -> None:
    rule = RULE["not torch files next to .ckpt files"]
    assert rule(listed("a.ckpt", "optimizer.pt")) is None
    with pytest.raises(SourceError) as caught:
        rule(listed("b.bin"))
    assert "torch files (b.bin) and .ckpt files (a.ckpt): it is ambiguous" in text_of(caught.value)


def test_an_index_of_torch_files(listed: List) -> None:
    rule = RULE["an index of torch files"]
    assert rule(listed("a.bin")) is None
    assert rule(listed(TORCH_INDEX={"a": "x.bin"})) == Selection("torch", ["x.bin"], {"a": "x.bin"})


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ((), None),
        (("a.pt",), ["a.pt"]),
        (("training_args.bin",), None),
        (("pytorch_model.bin", "b.pt"), ["pytorch_model.bin"]),
        (("m-00001-of-00002.bin", "m-00002-of-00002.bin", "z.pt"), ["m-00001-of-00002.bin", "m-00002-of-00002.bin"]),
    ],
)
def test_torch_files(listed: List, names: tuple[str, ...], expected: list[str] | None) -> None:
    assert RULE["torch files"](listed(*names)) == (expected and Selection("torch", expected))


@pytest.mark.parametrize("names", [("a.pt", "b.pt"), ("pytorch_model.bin", "pytorch_model-00001-of-00001.bin")])
def test_several_torch_files(listed: List, names: tuple[str, ...]) -> None:
    with pytest.raises(SourceError) as caught:
        RULE["torch files"](listed(*names))
    assert "2 torch files" in text_of(caught.value)
    assert "ambiguous which of them are the checkpoint; give the file to convert" in text_of(caught.value)


def test_an_adapter(listed: List) -> None:
    rule = RULE["an adapter"]
    assert rule(listed()) is None
    assert rule(listed("adapter_model.bin")) == Selection("torch", ["adapter_model.bin"])
    assert rule(listed("adapter_model.safetensors")) == Selection("safetensors", ["adapter_model.safetensors"])
    assert rule(listed("a.ckpt")) is None


def test_one_ckpt(listed: List) -> None:
    rule = RULE["one .ckpt file, or the shards of one checkpoint"]
    assert rule(listed()) is None
    assert rule(listed("a.ckpt")) == Selection("ckpt", ["a.ckpt"])
    with pytest.raises(SourceError) as caught:
        rule(listed("b.ckpt"))
    assert "2 .ckpt files (a.ckpt, b.ckpt); give the file to convert" in text_of(caught.value)


CKPT = ("m-00001-of-00002.ckpt", "m-00002-of-00002.ckpt")


def test_a_numbered_series_of_ckpt(listed: List) -> None:
    with pytest.raises(SourceError) as caught:
        select(listed(CKPT[0]))
    assert f"lacks 1 shard: {CKPT[1]}; " in text_of(caught.value)
    assert select(listed(CKPT[1], "ckpt_strategy.ckpt")) == Selection("ckpt", [*CKPT])


@pytest.mark.parametrize("other", ["net.ckpt", "n-00001-of-00001.ckpt", "n-00002-of-00002.ckpt"])
def test_a_series_of_ckpt_next_to_another_checkpoint(listed: List, other: str) -> None:
    with pytest.raises(SourceError, match=r"holds 3 \.ckpt files") as caught:
        select(listed(*CKPT, other))
    assert caught.value.hint == "move all but one checkpoint to another directory"


def test_the_first_rule_that_applies_decides(listed: List) -> None:
    """Each directory has what all later rules would take too."""
    listed("a.ckpt")
    assert select(listed()).format == "ckpt"
    assert select(listed("adapter_model.safetensors")).format == "ckpt"
    found = listed("m1.safetensors", "b.bin")
    assert select(found) == Selection("safetensors", ["m1.safetensors"])
    assert ignored(found, select(found)) == {
        "a.ckpt": "the safetensors files next to it are read instead",
        "adapter_model.safetensors": "an adapter, not a model: merge it into its model first",
        "b.bin": "a torch file: the safetensors files next to it are read instead",
    }
    assert select(listed("m2.safetensors", HF_INDEX=INDEX)).index == INDEX


TWO = [f"model-{number:05}-of-00002.safetensors" for number in (1, 2)]
SHARDED = {"a": TWO[0], "b": TWO[1]}
TORCH = [f"pytorch_model-{number:05}-of-00002.bin" for number in (1, 2)]


@pytest.mark.parametrize("there", [(), TWO[:1], TWO[1:]])
@pytest.mark.parametrize(
    ("whole", "way_out"),
    [
        (["model.safetensors"], "give that file, or remove"),
        (["pytorch_model.bin"], "give that file, or remove"),
        (TORCH, "remove"),
        ([name.replace("00002", "00001") for name in TWO[:1]], "give that file, or remove"),
    ],
)
def test_a_stale_index_next_to_a_whole_model(
    listed: List, there: tuple[str, ...], whole: list[str], way_out: str
) -> None:
    with pytest.raises(SourceError) as caught:
        select(listed(*whole, *there, HF_INDEX=SHARDED))
    said, shown = text_of(caught.value), ", ".join(whole)
    assert f"lacks {2 - len(there)} shard" in said
    assert f"named by model.safetensors.index.json; {shown} would be a whole checkpoint" in said
    assert f"to convert {shown}, {way_out} model.safetensors.index.json; to convert the shards, download" in said


def test_a_stale_torch_index(listed: List) -> None:
    with pytest.raises(SourceError) as caught:
        select(listed("pytorch_model.bin", TORCH_INDEX={"a": TORCH[0], "b": TORCH[1]}))
    assert "named by pytorch_model.bin.index.json; pytorch_model.bin would be a whole" in text_of(caught.value)


@pytest.mark.parametrize("others", [(), ("training_args.bin",), ("notes.pt",), TORCH[:1], ("adapter_model.bin",)])
def test_an_index_without_shards_and_nothing_whole(listed: List, others: tuple[str, ...]) -> None:
    with pytest.raises(SourceError, match=r"lacks 2 shards: [^;]*$") as caught:
        select(listed(*others, HF_INDEX=SHARDED))
    assert caught.value.hint == "download them again"


def test_an_index_that_is_complete_wins_over_a_whole_model(listed: List) -> None:
    found = listed(*TWO, "model.safetensors", HF_INDEX=SHARDED)
    assert select(found).names == TWO
    assert ignored(found, select(found)) == {"model.safetensors": "not named by the index"}


def test_nothing_to_read(listed: List) -> None:
    with pytest.raises(SourceError, match=r"holds no file to read that ends in \.safetensors, \.ckpt, \.bin, .*pth$"):
        select(listed("config.json"))
    with pytest.raises(SourceError, match=r"ignored: x\.gguf: another format$"):
        select(listed("x.gguf"))


@pytest.mark.parametrize(
    ("text", "fetch"),
    [
        ("version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        ("/annex/objects/MD5E-s9--0.json", "git annex get"),
    ],
)
@pytest.mark.parametrize("name", [shards.HF_INDEX, shards.MS_MAP, shards.TORCH_INDEX])
def test_an_index_that_was_not_fetched(listed: List, tmp_path: Path, name: str, text: str, fetch: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(SourceError, match="pointer, not the file itself") as caught:
        select(listed())
    assert caught.value.hint == f"fetch the file with `{fetch}`"
