"""GPT-2: `Conv1D` weights are [in, out]; MindFormers keeps them so, but splits and transposes q, k and v."""

from __future__ import annotations

from ..rules.family import Config, Family, Option, Options
from ..rules.interleaving import Deinterleave, Interleave
from ..rules.statements import Drop, Rule, Statement
from ..rules.transforms import Transpose
from .parts.decoder import norm

_MS = "backbone.blocks.{layer}."
_COLUMNS = Deinterleave(Interleave(("1", "1", "1"), axis=1)) >> Transpose()
_ROWS = Deinterleave(Interleave(("1", "1", "1")))


def rules(config: Config, options: Options) -> list[Statement]:
    """Map GPT-2's layers, splitting and transposing q, k and v."""
    top = "transformer." if options["prefix"] else ""
    hf = top + "h.{layer}."
    qkv = {k: tuple(f"{_MS}attention.dense{i}.{k}" for i in (1, 2, 3)) for k in ("weight", "bias")}
    return [
        *norm(hf + "ln_1", _MS + "layernorm1", "hidden"),
        *norm(hf + "ln_2", _MS + "layernorm2", "hidden"),
        Rule(hf + "attn.bias", _MS + "attention.beta", optional=True),
        Rule(hf + "attn.masked_bias", _MS + "attention.masked_beta", optional=True),
        *_conv(hf + "attn.c_proj", _MS + "attention.projection", "hidden", "hidden"),
        Rule(hf + "attn.c_attn.weight", qkv["weight"], "hidden, 3*hidden", _COLUMNS),
        Rule(hf + "attn.c_attn.bias", qkv["bias"], "3*hidden", _ROWS),
        *_conv(hf + "mlp.c_fc", _MS + "output.mapping", "hidden", "ffn"),
        *_conv(hf + "mlp.c_proj", _MS + "output.projection", "ffn", "hidden"),
        *norm(top + "ln_f", "backbone.layernorm", "hidden"),
        Rule(top + "wte.weight", "backbone.embedding.word_embedding.embedding_table", "vocab, hidden"),
        Rule(top + "wpe.weight", "backbone.embedding.position_embedding.embedding_table", "positions, hidden"),
        Drop("tied to the embedding", hf=("lm_head.weight",), must_equal=top + "wte.weight"),
    ]


def _conv(hf: str, ms: str, rows: str, columns: str) -> list[Statement]:
    return [
        Rule(hf + ".weight", ms + ".weight", f"{rows}, {columns}"),
        Rule(hf + ".bias", ms + ".bias", columns),
    ]


FAMILY = Family(
    name="gpt",
    title="GPT-2, all sizes",
    repositories=("openai-community/gpt2{,-medium,-large,-xl}",),
    model_types=("gpt2",),
    architectures=("GPT2LMHeadModel", "GPT2Model"),
    sizes={
        "vocab": "vocab_size",
        "hidden": "n_embd",
        "ffn": "n_inner",
        "layers": "n_layer",
        "positions": "n_positions",
    },
    manual_sizes={"layers": "layers"},
    options=(
        Option(
            "prefix",
            (False, True),
            "HuggingFace's names begin with transformer., as save_pretrained writes them",
            is_preference=True,
            infer_from_names=True,
        ),
    ),
    rules=rules,
    differs_from_mindformers=(
        "names that start with transformer. are read; MindFormers writes an empty checkpoint",
        "the number of layers is the config's; MindFormers' option layers silently drops those above it",
        "integer and boolean masks keep their dtype whatever dtype is asked",
        "an untied head is refused because MindFormers' model ties it; MindFormers silently drops it",
    ),
)
