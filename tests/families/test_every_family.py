"""Every family, every choice of its options, models of sizes drawn from its own description: there and back.

The models are made from the family's table and the config keys that its sizes name, so a new family is tested by being
registered. Wrong names are not found this way, for both directions would be wrong alike: golden cases find those.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

import streamconv
from streamconv import testing as samples
from streamconv.errors import UsageError
from streamconv.families import Copy, Drop, Family, Rule, Tied, families, spell
from streamconv.formats import safetensors, shards
from streamconv.planning.mapping import Request, map_tensors
from streamconv.planning.options import decided_mapping
from streamconv.rules.statements import Direction
from streamconv.tensors.dtypes import BF16, F32, INTEGER
from streamconv.tensors.extents import Extent
from streamconv.tensors.refs import Catalog, TensorRef, TensorSpec
from support import golden
from support.helpers import FILE, choices

Drawn = Mapping[str, Any]

#: What may be drawn for config keys that are no plain size.
SPECIAL = {
    "layers": (1, 2, 3),
    "blocks": (1, 2),
    "last_blocks": (1, 2),
    "text_layers": (1, 2),
    "encoders": (1, 2),
    "decoders": (1, 3),
    "experts": (1, 2, 17),
    "dense": (0, 1),
    "mtp": (0, 1, 2),
    "rope": (2, 6),
    "head_dim": (2, 6),
    "heads": (1, 3, 5),
    "vision_heads": (1, 3),
    "kv": (1, 3),
    "shared": (1, 2),
    "twice_ffn": (6, 14),
}
ODD = (1, 3, 5, 7, 9)

#: Key of a config → the key whose multiple it has to be: for layouts that go head by head without a size of their own.
MULTIPLES = {
    "num_attention_heads": "num_key_value_heads",
    "hidden_size": "n_head",
    "n_embd": "n_head",
    "visual.width": "visual.heads",
    "visual.output_dim": "visual.heads",
    "text_config.hidden_size": "text_config.num_attention_heads",
    "vision_config.hidden_size": "vision_config.num_heads",
}
#: Swin's stages are in no config: tests/families/test_more_families.py has it. mindone's is no model, and one way.
NOT_DRAWN = {"raw", "swin", "mindone"}
FAMILIES = [family for family in families() if family.name not in NOT_DRAWN]


def keys(family: Family) -> dict[str, str]:
    """The config key that is drawn for each symbol."""
    result = {}
    for symbol, text in family.sizes.items():
        plain = [part.strip().partition(" if ")[0] for part in text.split("|") if not part.strip().startswith("=")]
        if plain:
            result[symbol] = plain[0]
    return result


@st.composite
def configs(draw: st.DrawFn, family: Family) -> dict[str, Any]:
    """A config of the family, of small odd sizes."""
    flat = {key: draw(st.sampled_from(SPECIAL.get(symbol, ODD))) for symbol, key in keys(family).items()}
    if "first_k_dense_replace" in flat:
        flat["num_hidden_layers"] += flat["first_k_dense_replace"]
    for key, of in MULTIPLES.items():
        if key in flat and of in flat:
            flat[key] = flat[of] * draw(st.sampled_from((1, 2, 4)))
    for text in family.sizes.values():
        for whole, part in re.findall(r"=(\w+)//(\w+)", text):
            if whole in keys(family) and part in keys(family):
                flat[keys(family)[whole]] = flat[keys(family)[part]] * draw(st.sampled_from((2, 6)))
    flat |= {"tie_word_embeddings": draw(st.booleans()), "multi_query_attention": draw(st.booleans())}
    flat |= {"torch_dtype": "bfloat16", "rope_theta": 10000.0}
    if family.name == "deepseek4" and draw(st.booleans()):
        count = flat["num_hidden_layers"]
        flat["compress_ratios"] = draw(st.lists(st.sampled_from((0, 4, 128)), min_size=count, max_size=count))
        flat["num_hash_layers"] = draw(st.integers(0, count))
    if family.name == "mllama":
        flat["text_config.cross_attention_layers"] = draw(st.sampled_from(([], [0], [1])))
    return {**nested(flat), **said_of(family)}


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in flat.items():
        *path, last = key.split(".")
        place = result
        for part in path:
            place = place.setdefault(part, {})
        place[last] = value
    return result


def said_of(family: Family) -> dict[str, Any]:
    return {"model_type": family.model_types[0]} if family.model_types else {}


def model(family: Family, config: Drawn, options: Drawn, optional: bool) -> list[TensorSpec]:
    """Its tensors, vectors in float32, all others in bfloat16; numbers that no config tells are some heads wide."""
    table = [rule for rule in family.rules(config, options) if isinstance(rule, Rule)]
    named = {n for rule in table for shape in rule.shapes() if shape for n in re.findall(r"[a-z_]\w*", shape)}
    unheard = {name: f"={family.sized(config, options).get('heads') or 1}*3" for name in named - family.sizes.keys()}
    known = replace(family, sizes={**family.sizes, **unheard})
    specs = samples.hf_specs(known, config, options, optional=optional)
    return [
        s if s.dtype.kind == INTEGER else TensorSpec(s.name, F32 if len(s.shape) == 1 else BF16, s.shape) for s in specs
    ]


def store(folder: Path, config: Drawn, specs: list[TensorSpec], again: Mapping[str, str], count: int) -> Path:
    """Write a checkpoint dealt over so many shards; `stored_twice`: tensors that are others once more."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    by_name = {s.name: s for s in specs}
    files = {shards.hf_shard_name(i + 1, count): specs[i::count] for i in range(count) if specs[i::count]}
    for file, some in files.items():
        data = {s.name: golden.golden_bytes(by_name[again.get(s.name, s.name)]) for s in some}
        golden.write(folder / file, safetensors.lay_out(file, some, {}), data)
    index = {s.name: file for file, some in files.items() for s in some}
    (folder / shards.HF_INDEX).write_bytes(shards.index_bytes(0, index))
    return folder


def repeated(family: Family, config: Drawn, options: Drawn, specs: list[TensorSpec]) -> dict[str, str]:
    """Tensors that HuggingFace stores again → what they repeat."""
    again, names = {}, {s.name for s in specs}
    tied = {s.hf: s.of for s in family.rules(config, options) if isinstance(s, Tied)}
    for statement in family.rules(config, options):
        if isinstance(statement, Drop) and statement.must_equal:
            again |= dict.fromkeys(statement.hf, statement.must_equal)
        if isinstance(statement, Copy):
            pattern = re.sub(r"\\{.*?\\}", r"\\d+", re.escape(statement.hf))
            of = statement.of if statement.of in names else tied.get(statement.of, "")
            again |= {name: of for name in names if re.fullmatch(pattern, name) and name != of}
    return again


CASES = [(family, options) for family in FAMILIES for options in choices(family)]


def named(case: Any) -> str:
    return case.name if isinstance(case, Family) else ",".join(f"{k}={spell(v)}" for k, v in case.items()) or "-"


@pytest.mark.slow
@pytest.mark.parametrize(("family", "options"), CASES, ids=named)
@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(data=st.data())
def test_it_comes_back(tmp_path_factory, family, options, data) -> None:
    config, optional = data.draw(configs(family)), data.draw(st.booleans())
    for key in ("n_head", "hidden_size", "ffn_hidden_size") if "mp" in options else ():
        config[key] *= options["mp"]  # as many parts as devices
    count, kind = data.draw(st.integers(1, 4)), data.draw(st.sampled_from(("ms", "ms.ckpt")))
    folder = tmp_path_factory.mktemp("family")
    specs = model(family, config, options, optional)
    source = store(folder / "hf", config, specs, repeated(family, config, options, specs), count)
    arguments = {"model": family.name, "options": options, "max_mem": "8G", "workers": 1}
    report = streamconv.convert(source, folder / kind, **arguments)
    streamconv.convert(folder / kind, folder / "back", reverse=True, config=source, **arguments)
    kept = golden.found(source)
    for name in report.prepared.mapping.dropped.keys() - golden.found(folder / "back").keys():
        del kept[name]
    assert golden.found(folder / "back") == kept


@pytest.mark.parametrize(("family", "options"), CASES, ids=named)
@settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(data=st.data())
def test_no_layout_is_taken_by_default_on_the_way_back(family, options, data) -> None:
    """Whatever options made it: without a manifest they are recognised, or asked."""
    config, optional = data.draw(configs(family)), data.draw(st.booleans())
    for key in ("n_head", "hidden_size", "ffn_hidden_size") if "mp" in options else ():
        config[key] *= options["mp"]
    specs = model(family, config, options, optional)
    refs = {s.name: TensorRef(s.name, s.dtype, s.shape, (Extent(FILE, 0, s.nbytes),)) for s in specs}
    request = Request(Catalog(FILE.path, "safetensors", refs, (FILE,)), family, config, Direction.FORWARD)
    outputs = [output.spec for output in map_tensors(request, options).outputs]
    refs = {s.name: TensorRef(s.name, s.dtype, s.shape, (Extent(FILE, 0, s.nbytes),)) for s in outputs}
    back = replace(request, catalog=dataclasses.replace(request.catalog, tensors=refs), direction=Direction.REVERSE)
    wishes = {o.name: options[o.name] for o in family.options if o.is_preference}
    try:
        found = decided_mapping(back, wishes)
    except UsageError as question:
        assert "neither names nor shapes tell" in str(question)
        assert any(f'"{option.name}": ' in str(question) for option in family.options if not option.is_preference)
    else:
        assert found.effect == map_tensors(back, options).effect


def test_every_family_is_drawn() -> None:
    assert {family.name for family, _ in CASES} == {family.name for family in families()} - NOT_DRAWN
