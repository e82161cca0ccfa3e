"""WizardCoder and other GPTBigCode models: all heads share one key and one value.

From MindFormers 1.5's `research/wizardcoder/convert_weight.py`, whose 6144 and 6272 are the first rows of k and v.
"""

from __future__ import annotations

from ..rules.family import Config, Family, Option, Options
from ..rules.interleaving import Deinterleave, Interleave
from ..rules.statements import TIED, Rule, Statement, Tied
from .parts.decoder import norm
from .parts.encoder import linear_transposed, qkv

_HF, _MS = "transformer.h.{layer}.", "backbone.blocks.{layer}."
_ONE_KEY = Deinterleave(Interleave(("heads", "1", "1")))


def rules(config: Config, options: Options) -> list[Statement]:
    """Map layers whose heads share one key and value, embeddings, and the head, which may be tied."""
    fused, dense, wte = _HF + "attn.c_attn.", _MS + "attention.", "transformer.wte.weight"
    tied = config.get(TIED, options["tied"])
    head = ("lm_head.weight", "head.head_weight")
    return [
        *norm(_HF + "ln_1", _MS + "layernorm1", "width"),
        *norm(_HF + "ln_2", _MS + "layernorm2", "width"),
        *linear_transposed(_HF + "attn.c_proj", dense + "projection", "width", "heads*head_dim"),
        Rule(fused + "weight", qkv("weight", dense), "(heads+2)*head_dim, width", _ONE_KEY),
        Rule(fused + "bias", qkv("bias", dense), "(heads+2)*head_dim", _ONE_KEY),
        *linear_transposed(_HF + "mlp.c_fc", _MS + "output.mapping", "ffn", "width"),
        *linear_transposed(_HF + "mlp.c_proj", _MS + "output.projection", "width", "ffn"),
        *norm("transformer.ln_f", "backbone.layernorm", "width"),
        Rule(wte, "backbone.embedding.word_embedding.embedding_table", "vocab, width"),
        Rule("transformer.wpe.weight", "backbone.embedding.position_embedding.embedding_table", "positions, width"),
        Tied(*head, wte, "vocab, width") if tied else Rule(*head, "vocab, width"),
    ]


FAMILY = Family(
    name="wizardcoder",
    title="WizardCoder-15B, StarCoder and other GPTBigCode models with one key for all heads",
    repositories=("WizardLM/WizardCoder-15B-V1.0", "bigcode/starcoder"),
    model_types=("gpt_bigcode",),
    architectures=("GPTBigCodeForCausalLM",),
    sizes={
        "vocab": "vocab_size",
        "hidden": "n_embd | hidden_size",
        "ffn": "n_inner",
        "layers": "n_layer | num_hidden_layers",
        "heads": "n_head | num_attention_heads",
        "positions": "n_positions",
        "head_dim": "=hidden//heads",
    },
    manual_sizes={"layers": "layers", "n_head": "heads", "hidden_size": "hidden"},
    options=(
        Option(
            "tied",
            (False, True),
            "HuggingFace's files have no lm_head: it is tied to the embedding",
            is_preference=True,
            infer_from_names=True,
        ),
    ),
    rules=rules,
    differs_from_mindformers=(
        "q, k and v have as many rows as the config says; MindFormers cuts at the 15B's",
        "in reverse, a head is not written if config.json ties it to the embedding",
        "any number of layers comes back; MindFormers fails unless there are 16 tensors a layer and five more",
    ),
)
