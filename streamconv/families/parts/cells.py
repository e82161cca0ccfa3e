"""The names that cells of MindSpore's own have: which a model has, only a checkpoint of the other side lists.

From mindone 0.5.0, `transformers/modeling_utils.py` and `diffusers/models/modeling_utils.py`: what `nn.Embedding`,
`nn.LayerNorm`, `nn.GroupNorm` and `nn.BatchNorm` hold has other names, weights of `nn.Conv1d` have an axis more. Models
built from `mint.nn` have HuggingFace's names already.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from ...errors import UsageError
from ...rules.family import REFERENCE, Config, Options, Reference
from ...rules.one_way import OneWay, RefuseUnsqueezed
from ...rules.statements import Drop, Rule, Side, Statement
from ...rules.transforms import Identity, Transform, UnsqueezeOf
from ...text import setting

Shapes = Mapping[str, tuple[int, ...]]

#: The value of the option `conv1d` where a reference tells.
LISTED = "listed"

#: How names end: MindSpore's -> torch's. What belongs together is there together.
_RENAMED = {
    ("gamma", "beta"): ("weight", "bias"),
    ("moving_mean", "moving_variance"): ("running_mean", "running_var"),
    ("embedding_table",): ("weight",),
}
_OURS = tuple(end for ends in _RENAMED for end in ends)
_CONVOLUTIONS = ("weight", "weight_g", "weight_v")
_CONV1D = UnsqueezeOf(axes=3, axis=2)

_GIVE = (
    f"give {setting('config', 'DIR')}, the directory of a checkpoint of the other side: forward, what the "
    "MindSpore model's save_pretrained wrote, from random weights too; in reverse, HuggingFace's, or "
    f"{setting('options.conv1d', 'false')} or {setting('options.conv1d', 'true')}"
)
_ONLY_BACK = OneWay("HuggingFace's names do not tell which cells are MindSpore's own", _GIVE)
_NOT_LISTED = RefuseUnsqueezed(
    *(_CONV1D, "the checkpoint given as config has no such weight, which may be that of a Conv1d"),
    f"give {setting('config', 'DIR')} with HuggingFace's checkpoint of the same model, or omit it",
)


def rules(config: Config, options: Options) -> Sequence[Statement]:
    """Rename what MindSpore's own cells hold; all else keeps its name."""
    reference, conv1d = config.get(REFERENCE), options["conv1d"]
    if not isinstance(reference, Reference):
        if conv1d == LISTED:
            raise UsageError("no checkpoint of the other side tells which cells are MindSpore's own", _GIVE)
        return _by_endings(_CONV1D if conv1d else Identity())
    if conv1d != LISTED:
        raise UsageError(
            "the checkpoint given as config tells which weights are those of a Conv1d",
            f"omit {setting('options.conv1d')}",
        )
    return [*(_to_mindspore if reference.side is Side.MS else _to_huggingface)(reference.shapes)]


def _to_mindspore(shapes: Shapes) -> Iterator[Statement]:
    """Yield the rule of every tensor that mindone's model has."""
    for name, shape in shapes.items():
        hf, spelled = _theirs(name, shapes), _spelled(shape)
        if name.rpartition(".")[2] in _CONVOLUTIONS and _CONV1D.may_have_made(shape):
            yield Rule(hf, name, transform=_CONV1D, ms_shape=spelled)
        else:
            yield Rule(hf, name, shape=spelled)
    yield Drop("BatchNorm of MindSpore does not count batches", hf=("{cell:*}.num_batches_tracked",))


def _theirs(name: str, shapes: Shapes) -> str:
    """Return HuggingFace's name: another one only if all is there that a cell has together."""
    cell, _, end = name.rpartition(".")
    for ms, hf in _RENAMED.items():
        if end in ms and all(f"{cell}.{one}" in shapes for one in ms):
            return f"{cell}.{hf[ms.index(end)]}"
    return name


def _to_huggingface(shapes: Shapes) -> Iterator[Statement]:
    """Yield the rules of what the names of HuggingFace's model decide, then those of all other tensors."""
    for name, shape in shapes.items():
        end = name.rpartition(".")[2]
        if end in _CONVOLUTIONS and len(shape) >= _CONV1D.axes:
            transform = _CONV1D if len(shape) == _CONV1D.axes else Identity()
            yield Rule(name, name, shape=_spelled(shape), transform=transform, optional=True)
        elif end in _OURS:
            yield Rule(name, name, shape=_spelled(shape), optional=True)
    yield from _by_endings(_NOT_LISTED)


def _spelled(shape: tuple[int, ...]) -> str:
    return ", ".join(map(str, shape))


def _by_endings(convolutions: Transform) -> list[Statement]:
    """Return the rules of a conversion to HuggingFace that how names end decides."""
    return [
        # These come first, so that a HuggingFace source is refused for its names, not for a pair that is incomplete.
        *(_any((end,), (end,), _ONLY_BACK >> convolutions) for end in _CONVOLUTIONS),
        _any(("bias",), ("bias",), _ONLY_BACK),
        *(_any(hf, ms, _ONLY_BACK) for ms, hf in _RENAMED.items()),
        Rule("{name:*}", "{name:*}", transform=_ONLY_BACK, optional=True, any_layer=True),
    ]


def _any(hf: tuple[str, ...], ms: tuple[str, ...], transform: Transform) -> Rule:
    """Return the rule of a cell's parameters, wherever the cell is."""
    theirs, ours = (tuple("{cell:*}." + end for end in ends) for ends in (hf, ms))
    return Rule(theirs, ours, transform=transform, optional=True, any_layer=True)


#: A cell of each kind, for the table that is shown.
_CELLS = {
    "embed.embedding_table": (100, 8),
    "conv1d.weight": (8, 4, 1, 3),
    "norm.gamma": (8,),
    "norm.beta": (8,),
    "batch_norm.moving_mean": (8,),
    "batch_norm.moving_variance": (8,),
    "linear.weight": (4, 8),
}
EXAMPLE: Config = {REFERENCE: Reference(Side.MS, _CELLS)}
