"""Any training: models cut for ranks by NumPy, with any layouts, come out as if the whole model had been converted."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import streamconv
from streamconv import conversion
from streamconv.engine.budget import Budget
from streamconv.tensors import dtypes
from streamconv.tensors.refs import TensorSpec
from support import golden
from support.helpers import ms
from support.trainings import (
    Stage,
    Tensor,
    Training,
    drawn_cut,
    write_file,
    write_iteration,
    write_ranks,
    write_strategies,
)

DEVICES = [(), (1,), (2,), (4,), (2, 2), (1, 2), (2, 1, 2), (4, 1), (2, 2, 2), (2, 3), (3, 1), (4, 2), (1, 1)]
EVEN = {
    "hidden_size": (8, 12, 24),
    "num_attention_heads": (4, 6),
    "head_dim": (4, 6),
    "num_hidden_layers": (1, 2, 3),
    "vocab_size": (8, 12, 18),
    "intermediate_size": (8, 12),
    "torch_dtype": ("bfloat16",),
    "tie_word_embeddings": (False, True),
}
MODELS: dict[str, tuple[Mapping[str, Sequence[Any]], dict[str, Any]]] = {
    "llama": ({**EVEN, "num_key_value_heads": (2,)}, {}),
    "mixtral": ({**EVEN, "num_key_value_heads": (2,), "num_local_experts": (4, 6)}, {"use_gmm": True}),
    "qwen3": ({**EVEN, "num_key_value_heads": (2,)}, {"interleave_mlp": True, "contiguous_qkv": False}),
    "deepseek3": (
        {
            **EVEN,
            "num_key_value_heads": (4,),
            "num_hidden_layers": (2, 3),
            "tie_word_embeddings": (False,),
            "q_lora_rank": (6, 8),
            "kv_lora_rank": (4, 6),
            "qk_nope_head_dim": (4,),
            "qk_rope_head_dim": (2, 4),
            "v_head_dim": (4, 6),
            "n_routed_experts": (4, 6),
            "n_shared_experts": (1,),
            "moe_intermediate_size": (4, 6),
            "first_k_dense_replace": (1,),
            "num_nextn_predict_layers": (0, 1),
        },
        {"layout": "mcore", "interleave_mlp": True},
    ),
}
#: What training adds; no strategy names the last four, and every rank has them whole.
OPTIMIZER = ("adam_m.", "adam_v.")
OF_THE_RUN = {
    "global_step": ("I32", (1,)),
    "epoch_num": ("I64", ()),
    "loss_scale": ("F32", ()),
    "adam_m.nothing": ("F32", (0, 3)),
}

# A training is one number to hypothesis: there is nothing to shrink.
QUICK = settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    report_multiple_bugs=False,
)


class Drawn(NamedTuple):
    """A model of one family, and a training of it."""

    family: str
    options: dict[str, Any]
    config: dict[str, Any]
    training: Training
    random: Random


@st.composite
def trainings(draw: st.DrawFn, partial: bool = True, shared: bool = True) -> Drawn:
    family = draw(st.sampled_from([*MODELS]))
    devices = draw(st.sampled_from(DEVICES))
    count = draw(st.sampled_from([1, 1, 2, 3]))
    has_optimizer, is_large = draw(st.booleans()), draw(st.booleans())
    # Hundreds of choices for tensors: one number decides them.
    random = Random(draw(st.integers(0, 1 << 32)))
    ranges, options = MODELS[family]
    config = {key: random.choice(values) for key, values in ranges.items()} | {"model_type": family}
    if is_large:
        config |= {key: 16 * config[key] for key in ("hidden_size", "intermediate_size", "vocab_size")}
    tensors = {spec.name: Tensor.of(spec) for spec in ms(config, **options)}
    stages = [Stage() for _ in range(count)]
    for name, tensor in [*tensors.items()]:
        stage = random.choice(stages)
        stage.cuts[name] = drawn_cut(random, devices, tensor.bits.shape, partial)
        if shared and random.random() < 0.1:
            random.choice(stages).cuts[name] = drawn_cut(random, devices, tensor.bits.shape, partial)
        for prefix in OPTIMIZER if has_optimizer else ():
            state = TensorSpec(prefix + name, dtypes.F32, tensor.bits.shape)
            tensors[state.name] = Tensor.of(state)
            stage.cuts[state.name] = drawn_cut(random, devices, tensor.bits.shape, partial)
    stages = [stage for stage in stages if stage.cuts]
    return Drawn(family, options, config, Training(tensors, stages, devices), random)


def add_run(training: Training) -> None:
    for name, (dtype, shape) in OF_THE_RUN.items():
        spec = TensorSpec(name, dtypes.from_safetensors(dtype, name), shape)
        training.tensors = {**training.tensors, name: Tensor.of(spec)}
        for stage in training.stages:
            stage.unlisted.append(name)


def lost_ranks(drawn: Drawn, held: Mapping[int, Mapping[str, Tensor]]) -> list[int]:
    """Ranks that can go: all that they hold others hold too."""
    gone: list[int] = []
    for rank in drawn.random.sample(sorted(held), len(held)):
        kept = {r for r in held if r not in {*gone, rank}}
        needed = [
            [number * drawn.training.stage_ranks + local for local in group]
            for number, stage in enumerate(drawn.training.stages)
            for cut in stage.cuts.values()
            for group in cut.groups()
        ]
        if all(kept & {*group} for group in needed):
            gone.append(rank)
    return gone


def check(drawn: Drawn, source: Path, folder: Path, names: Sequence[str], **arguments: Any) -> None:
    """Compare what `source` gives with what the whole tensors give, for raw and for HuggingFace."""
    whole = write_file(folder / "whole.safetensors", {name: drawn.training.tensors[name] for name in names})
    for number, words in enumerate(
        (
            {"model": "raw"},
            {"model": drawn.family, "reverse": True, "options": drawn.options, "config": folder / "config.json"},
        )
    ):
        one, other = folder / f"one{number}", folder / f"other{number}"
        streamconv.convert(source, one, **arguments, **words)
        streamconv.convert(whole, other, **words)
        assert golden.found(one) == golden.found(other)
        if words["model"] != "raw":
            assert contents(one) == contents(other)
    for name, tensor in streamconv.open(source, strategy=arguments.get("strategy")).items():
        assert tensor.numpy().tobytes() == drawn.training.tensors[name].bits.tobytes(), name


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def patch():
    with pytest.MonkeyPatch.context() as patch:
        yield lambda region: patch.setattr(conversion, "decide_budget", lambda *_: Budget(1 << 30, 1 << 20, 2, region))


#: Of a worker: larger than all tensors here, or smaller than many of the large models.
REGIONS = st.sampled_from([1 << 20, 4096, 200])


@pytest.mark.slow
@QUICK
@given(
    trainings(),
    REGIONS,
    st.sampled_from([".ckpt", ".safetensors"]),
    st.sampled_from(["protobuf", "json"]),
    st.sampled_from(["all", "removed", "some ranks"]),
    st.booleans(),
)
def test_folders_of_ranks(tmp_path_factory, patch, drawn, region, ending, kind, copies, beside) -> None:
    patch(region)
    folder, training = tmp_path_factory.mktemp("ranks"), drawn.training
    add_run(training)
    (folder / "config.json").write_text(json.dumps(drawn.config))
    held = training.without_copies(drawn.random.choice) if copies == "removed" else training.all_held()
    gone = lost_ranks(drawn, held) if copies == "some ranks" else []
    write_ranks(
        folder / "output", {r: one for r, one in held.items() if r not in gone}, "tiny_rank_{rank}-1_10" + ending
    )
    strategy = write_strategies(folder / ("output" if beside else "elsewhere"), training, kind)
    given_strategy = {} if beside else {"strategy": strategy}
    check(drawn, folder / "output", folder, [*training.tensors], **given_strategy, verify=drawn.random.random() < 0.3)


@pytest.mark.slow
@QUICK
@given(
    trainings(partial=False, shared=False),
    REGIONS,
    st.sampled_from(["1.8", "2.1"]),
    st.booleans(),
    st.sampled_from(["", "llama-", "a-model-b-"]),
    st.booleans(),
)
def test_iterations(tmp_path_factory, patch, drawn, region, version, removes, prefix, split) -> None:
    patch(region)
    folder, training = tmp_path_factory.mktemp("iterations"), drawn.training
    (folder / "config.json").write_text(json.dumps(drawn.config))
    held = training.without_copies(drawn.random.choice) if removes else training.all_held()

    def is_optimizer(name: str) -> bool:
        return split and name.startswith(OPTIMIZER)

    write_iteration(
        folder / "output",
        training,
        held,
        prefix=prefix,
        is_optimizer=is_optimizer,
        version=version,
        counts_files=removes,
    )
    names = [name for name in training.tensors if not is_optimizer(name)]
    check(drawn, folder / "output", folder, names)
