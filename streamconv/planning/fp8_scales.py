"""Block scales: pair FP8 weights with their `NAME_scale_inv`, whichever shards hold the two.

DeepSeek's format: `NAME` is F8_E4M3 `[rows, columns]`, `NAME_scale_inv` F32 (Qwen's BF16)
`[ceil(rows/128), ceil(columns/128)]`; the weight is the product. The block's size is `weight_block_size` of the
config's `quantization_config`, which models of several parts have in the config of one of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..errors import UnsupportedError
from ..rules.config_sections import quantisation
from ..tensors.dtypes import F8_E4M3
from ..tensors.refs import TensorRef
from ..text import quote, setting

SUFFIX = "_scale_inv"
#: What keeps FP8 as it is: MindSpore has no such dtype.
KEEP = f"{setting('model', 'raw')} {setting('format', 'hf')}"

_BLOCK = (128, 128)
_LEAST = 16  # smaller blocks have so many scales that no window would count them as small


@dataclass(frozen=True)
class Scales:
    """The scales of a checkpoint.

    Attributes:
        of: name of a weight → its scales.
        block: rows and columns of a block.
        missing: findings: weights without scales.
        surplus: findings: scales without a weight.
        active: whether the checkpoint has such weights at all.
    """

    of: Mapping[str, TensorRef] = field(default_factory=dict)
    block: tuple[int, int] = _BLOCK
    missing: tuple[str, ...] = ()
    surplus: tuple[str, ...] = ()
    active: bool = False

    def is_scale(self, name: str) -> bool:
        """Return whether a name is that of block scales: they belong to their weight, and no rule has to match them."""
        return self.active and name.endswith(SUFFIX)


def pair(tensors: Mapping[str, TensorRef], config: Mapping[str, object], keep: bool = False) -> Scales:
    """Pair the FP8 weights of a checkpoint with their block scales; a checkpoint may have neither.

    Args:
        tensors: the checkpoint's.
        config: the model's config.
        keep: keep weights and scales as they are where the config's blocks cannot be read, instead of raising.

    Raises:
        UnsupportedError: the config's blocks are smaller than 16 x 16, or none.
    """
    block = _block_size(config)
    weights = {name: ref for name, ref in tensors.items() if ref.dtype == F8_E4M3}
    names = [name for name in tensors if name.endswith(SUFFIX)] if weights else []
    if not weights or not (names or _quantisation(config)) or (keep and block is None):
        return Scales()
    if block is None:
        raise _unreadable(config)
    found, surplus = {}, []
    for name in names:
        weight = weights.get(name.removesuffix(SUFFIX))
        if weight is None:
            surplus.append(f"{quote(name)}: no F8_E4M3 tensor {quote(name.removesuffix(SUFFIX))} to scale")
        else:
            found[weight.name] = tensors[name]
    missing = [f"{quote(name)}: its scales {quote(name + SUFFIX)} are missing" for name in weights if name not in found]
    return Scales(found, block, tuple(missing), tuple(surplus), active=True)


def _quantisation(config: Mapping[str, object]) -> Mapping[str, object]:
    """Return what the config says about block quantisation, empty if it says nothing."""
    entry = quantisation(config)
    return entry if "weight_block_size" in entry else {}


def _block_size(config: Mapping[str, object]) -> tuple[int, int] | None:
    """Return the rows and columns of a block, `None` where the config gives no readable ones."""
    match _quantisation(config).get("weight_block_size", [*_BLOCK]):
        case [int(rows), int(columns)] if min(rows, columns) >= _LEAST:
            return rows, columns
    return None


def _unreadable(config: Mapping[str, object]) -> UnsupportedError:
    return UnsupportedError(
        f"config.json: weight_block_size is {quote(_quantisation(config)['weight_block_size'])}, "
        f"not [rows, columns] of at least {_LEAST} each",
        f"convert a repository of the model that is not quantised, or keep all tensors as they are with {KEEP}",
    )
