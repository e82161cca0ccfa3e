"""A MindFormers YAML read as a config: what people have beside a checkpoint that they trained.

Its `model.model_config` says the same as HuggingFace's config.json under names of its own; each is given every name
that HuggingFace's configs have for it.
"""

from __future__ import annotations

from collections.abc import Mapping

import yaml

from ..errors import SourceError
from ..text import quote

_NAMES: Mapping[str, tuple[str, ...]] = {
    "num_layers": ("num_hidden_layers", "num_layers", "n_layer"),
    "num_heads": ("num_attention_heads", "n_head"),
    "n_kv_heads": ("num_key_value_heads",),
    "num_query_groups": ("num_key_value_heads",),
    "kv_channels": ("head_dim",),
    "intermediate_size": ("ffn_hidden_size",),
    "ffn_hidden_size": ("intermediate_size",),
    "moe_ffn_hidden_size": ("moe_intermediate_size",),
    "num_moe_experts": ("num_local_experts", "num_experts", "n_routed_experts"),
    "mtp_num_layers": ("num_nextn_predict_layers",),
    "hidden_size": ("hidden_size", "n_embd", "n_embed"),
    "expert_num": ("num_local_experts", "num_experts", "n_routed_experts"),
    "shared_expert_num": ("n_shared_experts",),
    "vocab_size": ("vocab_size", "padded_vocab_size"),
    "mtp_depth": ("num_nextn_predict_layers",),
}


# What all merges (`<<`) of a mapping may bring in; MindFormers' own YAMLs have none.
_MOST_MERGED = 10_000


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """Takes no merges of merges that multiply without end, as PyYAML before 6.0.4 does."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Merge, once what there is to be merged is known to be little."""
        values = [value for key, value in node.value if key.tag == "tag:yaml.org,2002:merge"]
        merged = [one for value in values for one in (value.value if isinstance(value, yaml.SequenceNode) else [value])]
        for one in merged:
            if isinstance(one, yaml.MappingNode):
                self.flatten_mapping(one)
        if sum(len(one.value) for one in merged) > _MOST_MERGED:
            raise yaml.constructor.ConstructorError(None, None, f"more than {_MOST_MERGED} merged keys")
        super().flatten_mapping(node)


def parse(text: bytes, where: str) -> dict[str, object]:
    """The `model.model_config` of a YAML as MindFormers spells it; its `moe_config` may stand beside `model`, too.

    Raises:
        SourceError: it is no YAML, or has none.
    """
    try:
        values = yaml.load(text, _Loader)
    except Exception as error:  # what a safe loader makes of a wrong scalar may raise anything: KeyError, IndexError …
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SourceError(f"{where} is not YAML: {quote(first)}; fetch it again") from error
    said = _mapping(_mapping(_mapping(values).get("model")).get("model_config"))
    if not said:
        raise SourceError(f"{where} has no model.model_config, where MindFormers says what the model is")
    experts = {**_mapping(_mapping(values).get("moe_config")), **_mapping(said.get("moe_config"))}
    named = {key: value for key, value in said.items() if isinstance(key, str)}
    return {**named, **({"moe_config": experts} if experts else {})}


def as_config(said: Mapping[str, object]) -> dict[str, object]:
    """What a `model_config` says, under HuggingFace's names too; what it leaves open (null) is left out."""
    flat = {**_mapping(said.get("moe_config")), **said}
    flat = {key: value for key, value in flat.items() if value is not None}
    named = {hf: flat[key] for key, names in _NAMES.items() if key in flat for hf in names}
    return {**named, **flat}


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, dict) else {}
