"""How PEFT scales an adapter, and whether MindFormers can: it multiplies every adapter by lora_alpha / lora_rank.

Source: PEFT 0.21, `tuners/lora` (`use_rslora`, `rank_pattern`, `alpha_pattern`, `fan_in_fan_out`, `use_dora`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from ..errors import UnsupportedError
from ..tensors.refs import TensorSpec
from ..text import first_few, quote
from .peft import A

Config = Mapping[str, object]

#: What to do with an adapter that MindFormers cannot use.
MERGE = "merge the adapter into its model with PEFT, then convert the model"

_ROOT = "base_model.model."

#: Longer patterns, and those with groups or more repetitions, may take a matcher for ever.
_LONGEST_PATTERN = 100
_MOST_REPEATS = 3


class _Unsupported(NamedTuple):
    """What an adapter's config may ask for, and no MindFormers model does."""

    key: str
    is_asked: Callable[[object], bool]
    what: str


def _is_pattern(value: object) -> bool:
    """Whether it is numbers by the modules' names."""
    return isinstance(value, dict) and all(math.isfinite(_number(one)) for one in value.values())


def _is_given(value: object) -> bool:
    return value not in (None, False, [], {}, "", 0)


_UNSUPPORTED = (
    _Unsupported("peft_type", lambda value: value not in (None, "LORA"), "adapters of this type"),
    _Unsupported("use_dora", _is_given, "DoRA, which scales every row of the sum by a magnitude of its own"),
    _Unsupported("lora_bias", _is_given, "a bias in adapters"),
    _Unsupported("bias", lambda value: value not in (None, "none"), "biases trained with the adapter"),
    _Unsupported("modules_to_save", _is_given, "whole modules trained with the adapter"),
    _Unsupported("trainable_token_indices", _is_given, "tokens trained with the adapter"),
    _Unsupported("target_parameters", _is_given, "adapters of parameters that are no module's weight"),
    _Unsupported("layer_replication", _is_given, "layers that are used more than once"),
    _Unsupported("alora_invocation_tokens", _is_given, "adapters that only act after certain tokens"),
    _Unsupported("arrow_config", _is_given, "routing between adapters"),
    _Unsupported("use_qalora", _is_given, "QALoRA, which pools the adapter's input"),
    _Unsupported("use_bdlora", _is_given, "BD-LoRA, whose adapters are block-diagonal"),
    _Unsupported("alpha_pattern", lambda value: _is_given(value) and not _is_pattern(value), "scales of this kind"),
)
#: What keeps tensors from fitting, though it may be without effect where they do.
_OF_TENSORS = _Unsupported("rank_pattern", _is_given, "adapters of several ranks")

#: Values of `init_lora_weights` that change the base's weights -> their names.
_CHANGES_BASE = {"pissa": "PiSSA", "olora": "OLoRA", "corda": "CorDA", "loftq": "LoftQ"}


def unsupported(config: Config, fits: bool = True) -> str:
    """Return what an adapter_config.json asks for that MindFormers does not have, or nothing.

    Args:
        config: the adapter_config.json.
        fits: whether the adapter's tensors fit MindFormers' model.
    """
    for key, is_asked, what in (*_UNSUPPORTED, *(() if fits else (_OF_TENSORS,))):
        if is_asked(value := config.get(key)):
            return f"adapter_config.json says {key} = {quote(value)}: MindFormers does not have {what}"
    return ""


def warnings(config: Config, specs: Sequence[TensorSpec]) -> Iterator[str]:
    """Yield what has to be known to use an adapter with MindFormers.

    Args:
        config: its adapter_config.json; empty without one.
        specs: its tensors, under PEFT's names.

    Raises:
        UnsupportedError: the config asks for what MindFormers does not have, or for several scales.
    """
    if not config:
        yield "there is no adapter_config.json: nothing tells lora_alpha, by which MindFormers scales the adapter"
        return
    if reason := unsupported(config):
        raise UnsupportedError(reason, MERGE)
    ranks = {_module(spec.name): spec.shape[0] for spec in specs if A in spec.name and spec.shape}
    _check_rank(config, ranks.values())
    if math.isfinite(_number(config.get("lora_alpha"))):
        yield from _of_the_scale(config, ranks)
    else:
        yield _no_alpha(config)
    if config.get("fan_in_fan_out"):
        yield "fan_in_fan_out is ignored, as PEFT ignores it for the linear layers that these models have"
    method = str(config.get("init_lora_weights")).lower().partition("_")[0]
    if method in _CHANGES_BASE:
        yield (
            f"{_CHANGES_BASE[method]} changed the base's weights before training: "
            "the adapter belongs to those, not to the published model"
        )


def _check_rank(config: Config, ranks: Iterable[int]) -> None:
    """Refuse a rank that the tensors do not have; `rank_pattern` gives some of them another."""
    stated, found = config.get("r"), sorted(set(ranks))
    if stated is not None and found and stated not in found and not config.get("rank_pattern"):
        raise UnsupportedError(
            f"adapter_config.json says r = {quote(stated)}, but the adapter's tensors have rank "
            f"{first_few([*map(str, found)])}",
            "give the adapter_config.json that was saved with these tensors",
        )


def _no_alpha(config: Config) -> str:
    alpha = config.get("lora_alpha")
    what = f"lora_alpha = {quote(alpha)}, which is no number" if alpha else "no lora_alpha"
    return f"adapter_config.json says {what}: nothing tells lora_alpha, by which MindFormers scales the adapter"


def _of_the_scale(config: Config, ranks: Mapping[str, int]) -> Iterator[str]:
    scales = {module: _scale(config, module, rank) for module, rank in ranks.items()}
    if not scales or not all(math.isfinite(scale) for scale in scales.values()):
        return
    (first, scale), *others = scales.items()
    for module, other in others:
        if not math.isclose(other, scale):
            raise UnsupportedError(
                f"adapter_config.json scales {quote(first)} by {scale:g} and {quote(module)} by {other:g} "
                f"({_reasons(config)}), but MindFormers scales all by lora_alpha / lora_rank",
                MERGE,
            )
    rank = ranks[first]
    if not math.isclose(scale * rank, _number(config.get("lora_alpha"))):
        yield (
            f"PEFT scales the adapter by {scale:g} ({_reasons(config)}), and MindFormers by lora_alpha / lora_rank: "
            f"set lora_alpha to {scale * rank:g}, with lora_rank {rank}, in MindFormers' YAML"
        )


def _scale(config: Config, module: str, rank: int) -> float:
    alpha = _number(_of_module(config.get("alpha_pattern"), module, config.get("lora_alpha")))
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank) if rank else math.nan


def _number(value: object) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1 << 31
    return float(value) if is_number and isinstance(value, int | float) else math.nan


def _of_module(patterns: object, module: str, default: object) -> object:
    """Return the value of the first key that is the end of a module's name, as PEFT looks it up."""
    for key, value in patterns.items() if isinstance(patterns, dict) else ():
        if re.match(rf"(.*\.)?({_checked(key)})$", module):
            return value
    return default


def _checked(pattern: object) -> str:
    text = str(pattern)
    repeats = sum(text.count(sign) for sign in "*+{")
    try:
        re.compile(text)
        is_plain = len(text) <= _LONGEST_PATTERN and repeats <= _MOST_REPEATS and "(" not in text
    except (re.error, OverflowError, RecursionError):
        is_plain = False
    if not is_plain:
        raise UnsupportedError(f"adapter_config.json: {quote(text)} is no pattern that streamconv can look up", MERGE)
    return text


def _module(name: str) -> str:
    return name.partition(A)[0].removeprefix(_ROOT)


def _reasons(config: Config) -> str:
    said = [f"{key} = {quote(config[key])}" for key in ("r", "lora_alpha", "use_rslora") if key in config]
    return ", ".join([*said, *(["alpha_pattern"] if config.get("alpha_pattern") else [])])
