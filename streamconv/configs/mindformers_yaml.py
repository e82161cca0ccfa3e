"""A MindFormers YAML read as a config: such a file accompanies a checkpoint that was trained with MindFormers.

Its `model.model_config` states what HuggingFace's config.json does, under other names; each value is returned under
every name that HuggingFace's configs use for it.
"""

from __future__ import annotations

from collections.abc import Mapping

import yaml

from ..errors import SourceError
from ..formats.headers import DOWNLOAD_AGAIN
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


#: The most keys that the merges (`<<`) of a mapping may add; MindFormers' own YAMLs have none.
MOST_MERGED = 10_000


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """Refuses merges of merges that multiply without end, which PyYAML before 6.0.4 allows."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Merge, after checking that the number of merged keys is small."""
        values = [value for key, value in node.value if key.tag == "tag:yaml.org,2002:merge"]
        merged = [one for value in values for one in (value.value if isinstance(value, yaml.SequenceNode) else [value])]
        for one in merged:
            if isinstance(one, yaml.MappingNode):
                self.flatten_mapping(one)
        if sum(len(one.value) for one in merged) > MOST_MERGED:
            raise yaml.constructor.ConstructorError(None, None, f"more than {MOST_MERGED} merged keys")
        super().flatten_mapping(node)


def parse(text: bytes, where: str) -> dict[str, object]:
    """Return the `model.model_config` of a YAML under MindFormers' names; `moe_config` may also stand next to `model`.

    Raises:
        SourceError: the text is not YAML, or has no `model.model_config`.
    """
    try:
        values = yaml.load(text, _Loader)
    except Exception as error:  # on invalid scalars a safe loader raises anything: KeyError, IndexError …
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SourceError(f"{where} is not YAML: {quote(first)}", DOWNLOAD_AGAIN) from error
    stated = _mapping(_mapping(_mapping(values).get("model")).get("model_config"))
    if not stated:
        raise SourceError(f"{where} has no model.model_config, where MindFormers describes the model")
    experts = {**_mapping(_mapping(values).get("moe_config")), **_mapping(stated.get("moe_config"))}
    named = {key: value for key, value in stated.items() if isinstance(key, str)}
    return {**named, **({"moe_config": experts} if experts else {})}


def as_config(values: Mapping[str, object]) -> dict[str, object]:
    """Return the values of a `model_config` under HuggingFace's names too, without those that are null."""
    flat = {**_mapping(values.get("moe_config")), **values}
    flat = {key: value for key, value in flat.items() if value is not None}
    named = {hf: flat[key] for key, names in _NAMES.items() if key in flat for hf in names}
    return {**named, **flat}


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, dict) else {}
