"""TeleChat3, dense: Qwen3's MCore names without norms of q and k, or Llama's classic names.

`mcore`: MindFormers 1.8 and later, in graph mode. `classic`: its `research/telechat3` (1.8B, 36B). MindFormers has no
converter to the first; names and shapes are those of its network, and fused tensors those of its own operators.
"""

from __future__ import annotations

from ..errors import UsageError
from ..rules.family import Config, Family, Option, Options
from ..rules.statements import Statement
from ..text import setting
from . import llama, qwen3
from .parts.decoder import DECODER_SIZES, INTERLEAVE_MLP


def rules(config: Config, options: Options) -> list[Statement]:
    """Map the model in the chosen layout.

    Raises:
        UsageError: layout=classic with an option of the fused tensors, which it does not have.
    """
    if options["layout"] == "mcore":
        return qwen3.dense(config, options)
    for option in (INTERLEAVE_MLP, qwen3.CONTIGUOUS_QKV):
        if options[option.name] != option.default:
            raise UsageError(
                f"{option.name} goes only with layout=mcore; in layout=classic nothing is fused",
                f"omit {setting(f'options.{option.name}')}",
            )
    return llama.rules(config, {"qkv_concat": False})


FAMILY = Family(
    name="telechat3",
    title="TeleChat3, dense: 36B",
    repositories=("Tele-AI/TeleChat3-36B-Thinking",),
    model_types=("telechat3",),
    architectures=("TeleChat3ForCausalLM", "Telechat3ForCausalLM"),
    sizes=DECODER_SIZES,
    options=(
        Option("layout", ("mcore", "classic"), "MindFormers 1.8 and later, or its research/telechat3"),
        INTERLEAVE_MLP,
        qwen3.CONTIGUOUS_QKV,
    ),
    rules=rules,
    differs_from_mindformers=(
        "layout=mcore: MindFormers has no converter; the names are those of its network (1.8 to 2.1, graph mode)",
        "layout=classic in reverse gives the names that the forward direction reads; MindFormers writes others",
        "layers are model.layers.N, as published; layout=classic of MindFormers also reads transformer.h.N",
    ),
)
