"""Families: every option of every family, there and back, gives the same tensors to the byte."""

from __future__ import annotations

import ast
import hashlib
import importlib
import json
import re
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
from msgspec.structs import replace

import streamconv
from streamconv import testing as samples
from streamconv.errors import SourceError, UnsupportedError, UsageError
from streamconv.families import Option
from streamconv.families import registry as families
from streamconv.rules.statements import Rule, Side
from streamconv.tensors.dtypes import BF16, F16, F32
from streamconv.tensors.refs import TensorSpec
from support import golden
from support.helpers import LLAMA, MIXTRAL, hf, text_of

PACKAGE = Path(streamconv.__file__).parent
SHAPES = {
    "6 heads in 3 groups": {},
    "one group": {"num_key_value_heads": 1},
    "a group for each head": {"num_key_value_heads": 6},
    "head_dim from hidden": {"head_dim": None, "hidden_size": 18},
    "kv heads from heads": {"num_key_value_heads": None},
    "tied": {"tie_word_embeddings": True},
    "square": {"intermediate_size": 20},
    "one of everything": {
        **dict.fromkeys(("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads"), 1),
        **dict.fromkeys(("head_dim", "num_hidden_layers", "vocab_size"), 1),
    },
}


@pytest.fixture
def there_and_back(tmp_path):
    """Convert to a directory and to a `.ckpt`, and both back."""

    def run(config, specs, options) -> None:
        source = tmp_path / "hf"
        samples.write_hf(source, config, specs, 1500)
        expected = golden.found(source)
        assert len(expected) == len(specs)
        for kind in ("ms", "ms.ckpt"):
            there, back = tmp_path / kind, tmp_path / f"{kind}.back"
            streamconv.convert(source, there, options=options, max_mem="8G", max_shard_size=2000)
            assert golden.found(there) != expected
            streamconv.convert(there, back, reverse=True, config=source, max_mem="8G", max_shard_size=999)
            assert golden.found(back) == expected
            assert json.loads((back / "config.json").read_text()) == config
        assert golden.found(tmp_path / "ms") == golden.found(tmp_path / "ms.ckpt")

    return run


@pytest.mark.slow
@pytest.mark.parametrize("biased", [False, True], ids=["", "biases"])
@pytest.mark.parametrize("concat", [False, True, "blocks"])
@pytest.mark.parametrize("shape", SHAPES)
def test_llama(there_and_back, shape, concat, biased) -> None:
    config = {**LLAMA, **SHAPES[shape]}
    there_and_back(config, hf(config, optional=biased), {"qkv_concat": concat})


@pytest.mark.slow
@pytest.mark.parametrize("use_gmm", [False, True])
@pytest.mark.parametrize(("experts", "shape"), [(1, "square"), (2, "tied"), *product([7], SHAPES)])
def test_mixtral(there_and_back, shape, experts, use_gmm) -> None:
    config = {**MIXTRAL, **SHAPES[shape], "num_local_experts": experts}
    there_and_back(config, hf(config), {"use_gmm": use_gmm})


@pytest.mark.parametrize("config", [LLAMA, MIXTRAL], ids=["llama", "mixtral"])
def test_dtypes_of_their_own(there_and_back, config) -> None:
    kinds = {"norm": F32, "experts": F16, "mlp": F16}
    specs = [replace(s, dtype=next((kind for word, kind in kinds.items() if word in s.name), BF16)) for s in hf(config)]
    there_and_back(config, specs, {})


@pytest.mark.slow
def test_eleven_layers_and_a_shard_for_each_tensor(there_and_back) -> None:
    config = {**LLAMA, "num_hidden_layers": 11}
    there_and_back(config, hf(config), {"qkv_concat": True})


def test_a_head_that_is_there_although_tied_has_to_be_the_embedding(tmp_path) -> None:
    config = {**LLAMA, "tie_word_embeddings": True}
    samples.write_hf(tmp_path / "hf", config, hf(LLAMA), 1 << 20)
    with pytest.raises(UnsupportedError, match=r"lm_head\.weight differs from model\.embed_tokens\.weight.*tie_word"):
        streamconv.convert(tmp_path / "hf", tmp_path / "ms", max_mem="8G")
    assert not (tmp_path / "ms").exists()


def test_raw_changes_the_format_and_nothing_else(tmp_path) -> None:
    samples.write_hf(tmp_path / "hf", MIXTRAL, hf(MIXTRAL), 3000)
    expected = golden.found(tmp_path / "hf")
    for kind in ("a.ckpt", "b"):
        streamconv.convert(tmp_path / "hf", tmp_path / kind, model="raw", max_mem="8G")
        assert golden.found(tmp_path / kind) == expected
    streamconv.convert(tmp_path / "a.ckpt", tmp_path / "c", model="raw", format="hf", max_mem="8G")
    assert golden.found(tmp_path / "c") == expected


def test_sources_differ_from_each_other() -> None:
    """Random values that were all alike would let every test above pass."""
    digests = [hashlib.sha256(golden.golden_bytes(spec)).hexdigest() for spec in hf(MIXTRAL)]
    assert len(set(digests)) == len(digests)


# The registry ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", families.families(), ids=lambda family: family.name)
def test_every_family_is_found_by_its_name_and_by_what_it_recognises(family) -> None:
    assert families.find(family.name) is family
    for model_type in family.model_types:
        found, why = families.recognise({"model_type": model_type, **dict.fromkeys(family.required_keys, 1)})
        assert found is family
        assert model_type in why


def test_only_the_family_that_is_asked_for_is_loaded() -> None:
    code = (
        "import sys; from streamconv.families import find; find('llama'); "
        "print(*(m for m in sys.modules if m in ('streamconv.families.llama', 'streamconv.families.mixtral')))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.split() == ["streamconv.families.llama"]


def test_a_package_that_is_installed_later_is_seen(tmp_path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    assert "late" not in {family.name for family in families.families()}
    (tmp_path / "late_models.py").write_text(
        "from streamconv.families import Family, Rule\n"
        "FAMILY = Family('late', 'installed later', lambda config, options: [Rule('a', 'b')])\n"
    )
    (tmp_path / "late-1.0.dist-info").mkdir()
    (tmp_path / "late-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: late\nVersion: 1.0\n")
    (tmp_path / "late-1.0.dist-info" / "entry_points.txt").write_text(
        "[streamconv.families]\nlate = late_models:FAMILY\n"
    )
    importlib.invalidate_caches()
    assert families.find("late").title == "installed later"
    assert "late" in {family.name for family in families.families()}


def test_every_module_of_the_package_is_in_the_registry() -> None:
    names = {path.stem for path in (PACKAGE / "families").glob("*.py")} - {"__init__", "registry"}
    assert {family.name.replace("-", "_") for family in families.families()} == names


def test_no_two_families_recognise_the_same_config() -> None:
    said = [(word, f.required_keys) for f in families.families() for word in (*f.model_types, *f.architectures)]
    assert len(said) == len(set(said))
    assert all((word, ()) in said for word, _ in said if word != "cogvlm2")


def deepseek3_goes_with(options) -> bool:
    its = {"classic": options["interleave_mlp"], "mcore": not options["use_gmm"]}
    return its.get(options["layout"], options["interleave_mlp"] and not options["use_gmm"])


#: Families some of whose options go only with others: whether these go together.
GOES_WITH = {
    "deepseek3": deepseek3_goes_with,
    "deepseek32": lambda o: o["layout"] == "pynative",
    "mindone": lambda o: o["conv1d"] == "listed",
    "telechat3": lambda o: o["layout"] == "mcore" or (o["interleave_mlp"] and not o["contiguous_qkv"]),
}


@pytest.mark.parametrize("family", families.families(), ids=lambda family: family.name)
def test_every_choice_of_options_gives_a_table(family) -> None:
    tables = 0
    for choice in product(*(option.values for option in family.options)):
        options = {option.name: value for option, value in zip(family.options, choice, strict=True)}
        try:
            tables += bool(family.rules(family.example, options))
        except UsageError as error:
            assert not GOES_WITH[family.name](options), error
    # What a reference lists, no option changes.
    assert tables >= (1 if family.reads_reference else sum(len(option.values) for option in family.options[:1]))


def test_options_are_spelled_and_parsed() -> None:
    option = Option("qkv_concat", (False, True, "blocks", 4), "")
    assert option.default is False
    assert [option.parse(text) for text in ("false", "True", " BLOCKS ", "4")] == [False, True, "blocks", 4]
    with pytest.raises(UsageError, match=r'options={"qkv_concat": 1}: not one of false, true, blocks, 4'):
        option.parse("1")


@pytest.mark.parametrize(
    ("name", "hint"), [("lama", "did you mean llama"), ("Mixtral", "mean mixtral"), ("\x1b[0m", ""), ("", "")]
)
def test_did_you_mean_this_model(name, hint) -> None:
    with pytest.raises(UsageError, match=rf"{hint}(.|\n)*llama, llava, mae, mindone, mixtral.*raw") as caught:
        families.find(name)
    assert text_of(caught.value)
    assert ("did you mean" in str(caught.value)) == bool(hint)


KNOWN = {family.name for family in families.families()}
RECOGNISED = [
    case for case in json.loads(Path(__file__).with_name("recognise.json").read_text()) if case["family"] in KNOWN
]


@pytest.mark.parametrize("case", RECOGNISED, ids=lambda case: case["config"]["model_type"])
def test_this_year_s_configs_are_recognised(case) -> None:
    family, _ = families.recognise(case["config"])
    assert family.name == case["family"]


def test_a_whole_layer_that_attends_to_the_image_is_missed(tmp_path) -> None:
    family = families.find("mllama")
    config = {"text_config": {**LLAMA, "cross_attention_layers": [1]}, "vision_config": {"max_num_tiles": 2}}
    config["vision_config"] |= dict.fromkeys(("hidden_size", "patch_size", "num_hidden_layers"), 2)
    config["vision_config"] |= dict.fromkeys(("intermediate_size", "num_channels", "num_global_layers"), 3)
    config["vision_config"] |= {"vision_output_dim": 5}
    sized = replace(family, sizes={**family.sizes, "tokens": "=heads", "ratios": "=heads"})
    specs = [spec for spec in samples.hf_specs(sized, config) if "cross_attn" not in spec.name]
    samples.write_hf(tmp_path / "hf", {**config, "model_type": "mllama"}, specs, 1 << 20)
    with pytest.raises(SourceError, match=r"layers\.1\.cross_attn\.q_proj\.weight: missing"):
        streamconv.plan(tmp_path / "hf", tmp_path / "ms", max_mem="8G")


def test_a_config_of_a_billion_layers_is_no_table_of_a_billion_patterns() -> None:
    table = families.find("mllama").rules({"text_config": {"num_hidden_layers": 1 << 30}}, {"hf_names": "published"})
    assert max(len(str(statement)) for statement in table) < 10_000


def test_v3_2_is_not_written_for_a_network_that_orders_rows_differently() -> None:
    """Its names and shapes would fit: nothing but the answers of the model would be wrong."""
    family = families.find("deepseek32")
    with pytest.raises(UsageError, match=r"indexer(.|\n)*another order(.|\n)*hint: .*pynative"):
        family.rules(family.example, {"layout": "mcore", "mtp": True})


@pytest.mark.parametrize("inside", ["internlm2", "qwen2", "phi3"])
@pytest.mark.parametrize("reverse", [False, True])
def test_an_internvl2_whose_language_model_is_no_llama_is_refused(tmp_path, inside, reverse) -> None:
    config = {"model_type": "internvl_chat", "llm_config": {"model_type": inside}}
    samples.write_hf(tmp_path / "hf", config, [TensorSpec("mlp1.3.bias", BF16, (4,))], 1 << 20)
    with pytest.raises(UsageError, match=rf"InternVL2 is not a Llama but {inside}.*\n.*model=\"raw\""):
        streamconv.plan(tmp_path / "hf", tmp_path / "ms", reverse=reverse, max_mem="8G")


@pytest.mark.parametrize("config", [{}, {"model_type": None}, {"model_type": 3}, {"architectures": [3]}])
def test_a_config_that_does_not_say_what_it_is(config) -> None:
    with pytest.raises(UsageError, match='model="NAME" or config="FILE"'):
        families.recognise(config)


def test_a_model_that_nobody_covers() -> None:
    with pytest.raises(UnsupportedError, match=r"no model family covers(.|\n)*model="):
        families.recognise({"model_type": "x\x1b[0m"})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"qkv_concta": True},
            "has no option 'qkv_concta'\nhint: did you mean qkv_concat[?] known options: qkv_concat",
        ),
        ({"use_gmm": True}, "llama has no option 'use_gmm'\nhint: known options: qkv_concat"),
        ({"qkv_concat": "maybe"}, '"qkv_concat": "maybe"}: not one of false, true, blocks'),
    ],
)
def test_options_that_are_not_the_family_s(tmp_path, options, said) -> None:
    samples.write_hf(tmp_path / "hf", LLAMA, hf(LLAMA), 1 << 20)
    with pytest.raises(UsageError, match=said):
        streamconv.plan(tmp_path / "hf", tmp_path / "ms", options=options, max_mem="8G")


@pytest.mark.parametrize("name", ["llama", "mixtral"])
def test_a_table_holds_symbols_and_no_sizes(name) -> None:
    """A table that knew the sizes of the tests' models would pass them and nothing else."""
    family = families.find(name)
    texts = list(family.sizes.values())
    for choice in product(*(option.values for option in family.options)):
        table = family.rules({}, {o.name: value for o, value in zip(family.options, choice, strict=True)})
        for rule in (statement for statement in table if isinstance(statement, Rule)):
            texts += [str(rule.shapes()), *rule.patterns(Side.HF), *rule.patterns(Side.MS)]
            assert {int(n) for n in re.findall(r"\d+", repr(rule.transform))} <= {0, 1, 2}
    assert not [text for text in texts if re.search(r"(?<![a-z_])\d", text)]


@pytest.mark.parametrize("module", ["llama", "mixtral", "parts/decoder"])
def test_a_family_s_module_counts_no_further_than_its_axes(module) -> None:
    tree = ast.parse((PACKAGE / "families" / f"{module}.py").read_text())
    numbers = {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and type(n.value) is int}
    assert numbers <= {0, 1, 2}
