"""The settings that decide a result's bytes, as manifests, journals and reports record them."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

from ..formats.layout import HF_SAFETENSORS, PEFT
from ..planning.mapping import TensorMapping
from ..rules.family import Options
from ..rules.statements import Direction
from ..tensors.dtypes import TARGETS, DType


class Settings(Struct, frozen=True, kw_only=True):
    """What was asked of a conversion, resolved: the same settings and source give the same bytes.

    Attributes:
        model: the model family's name.
        direction: from HuggingFace to MindSpore, or back.
        options: every option of the family.
        dtype: what float tensors are cast to, `None` where they keep theirs.
        format: of the result: `safetensors`, `ckpt`, `hf`, `peft` or `torch`.
        max_shard_size: bytes of an output shard at most.
        crc: whether MindSpore's CRC is appended to a `.ckpt`.
        ranks: for how many ranks tensors are cut, 0 where they are whole.
        strategy: what tells one way to cut them from another.
        links: whether ranks that hold the same share a file.
    """

    model: str
    direction: Direction
    options: Options
    dtype: DType | None
    format: str
    max_shard_size: int
    crc: bool
    ranks: int = 0
    strategy: str = ""
    links: bool = True

    @classmethod
    def of(cls, mapping: TensorMapping, kind: str, max_shard_size: int, crc: bool, links: bool = True) -> Settings:
        """Return the settings of a mapping that is written in this format."""
        return cls(
            model=mapping.family,
            direction=mapping.direction,
            options=mapping.options,
            dtype=mapping.dtype,
            format=kind,
            max_shard_size=max_shard_size,
            crc=crc,
            ranks=mapping.ranks,
            strategy=mapping.cut,
            links=links,
        )

    def to_json(self) -> dict[str, object]:
        """Return them as plain values."""
        return {
            "model": self.model,
            "direction": self.direction.value,
            "options": dict(sorted(self.options.items())),
            "dtype": self.dtype and self.dtype.name,
            "format": self.format,
            "max_shard_size": self.max_shard_size,
            "crc": self.crc,
            **({"ranks": self.ranks, "strategy": self.strategy, "links": self.links} if self.ranks else {}),
        }


def arguments_of(values: Mapping[str, object]) -> dict[str, object]:
    """Return the arguments of `streamconv.plan` that give the same settings again.

    Args:
        values: settings as `to_json` made them; their types are checked.

    Raises:
        KeyError: a setting is missing, or a dtype is none that floats are cast to.
    """
    words = {dtype.name: word for word, dtype in TARGETS.items()}
    dtype = values["dtype"]
    return {
        "model": values["model"],
        "reverse": values["direction"] == Direction.REVERSE.value,
        "dtype": None if dtype is None else words[str(dtype)],
        "options": values["options"],
        "format": HF_SAFETENSORS if values["format"] == PEFT else values["format"],
        "max_shard_size": values["max_shard_size"],
        "crc": values["crc"],
    }
