"""Any model that mindone's `save_pretrained` wrote, to HuggingFace's names: only cells of MindSpore's own differ.

From mindone 0.5.0, `transformers/modeling_utils.py` and `diffusers/models/modeling_utils.py`: what `nn.Embedding`,
`nn.LayerNorm`, `nn.GroupNorm` and `nn.BatchNorm` hold has other names, weights of `nn.Conv1d` have an axis more. Models
built from `mint.nn` have HuggingFace's names already.
"""

from __future__ import annotations

from ..rules.family import Config, Family, Option, Options
from ..rules.one_way import OneWay
from ..rules.statements import Rule, Statement
from ..rules.transforms import Transform, UnsqueezeOf

#: How names end: MindSpore's -> torch's. What belongs together is there together.
_RENAMED = {
    ("gamma", "beta"): ("weight", "bias"),
    ("moving_mean", "moving_variance"): ("running_mean", "running_var"),
    ("embedding_table",): ("weight",),
}
_CONVOLUTIONS = (("weight",), ("weight_g",), ("weight_v",))
_ONLY_BACK = OneWay(
    "HuggingFace's names do not tell which cells are MindSpore's own: only mindone's own checkpoints are converted",
    "give mindone the HuggingFace directory itself: its from_pretrained reads it",
)
_CONV1D = _ONLY_BACK >> UnsqueezeOf(axes=3, axis=2)


def rules(config: Config, options: Options) -> list[Statement]:
    """Rename what MindSpore's own cells hold; all else keeps its name."""
    return [
        # These come first, so that a HuggingFace source is refused for its names, not for a pair that is incomplete.
        *(_any(names, names, _CONV1D if options["conv1d"] else _ONLY_BACK) for names in _CONVOLUTIONS),
        _any(("bias",), ("bias",), _ONLY_BACK),
        *(_any(hf, ms, _ONLY_BACK) for ms, hf in _RENAMED.items()),
        Rule("{name:*}", "{name:*}", transform=_ONLY_BACK, optional=True, any_layer=True),
    ]


def _any(hf: tuple[str, ...], ms: tuple[str, ...], transform: Transform) -> Rule:
    """Return the rule of a cell's parameters, wherever the cell is."""
    theirs, ours = (tuple("{cell:*}." + end for end in ends) for ends in (hf, ms))
    return Rule(theirs, ours, transform=transform, optional=True, any_layer=True)


FAMILY = Family(
    name="mindone",
    title="Any model that mindone saved, to HuggingFace; only in reverse, and never recognised from config.json",
    options=(
        Option("conv1d", (False, True), "true: weights [out, in, 1, k] are Conv1d's, [out, in, k] in HuggingFace"),
    ),
    rules=rules,
    drops_training_state=False,
    differs_from_mindformers=(
        "mindone itself has no way back to HuggingFace's names",
        "a gamma without a beta is refused: it may be a parameter that HuggingFace's model calls so too",
        "convolutions of one dimension look like those of two with height one: a model with both cannot be converted",
    ),
)
