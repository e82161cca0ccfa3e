"""The settings that decide a result's bytes, as manifests, journals and reports record them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..rules.family import Options
from ..rules.statements import Direction
from ..tensors.dtypes import DType


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What was asked of a conversion, resolved: the same settings and source give the same bytes.

    Attributes:
        model: the model family's name.
        direction: from HuggingFace to MindSpore, or back.
        options: every option of the family.
        dtype: what float tensors are cast to, `None` where they keep theirs.
        format: of the result: `safetensors`, `ckpt`, `hf`, `peft` or `torch`.
        max_shard_size: bytes of an output shard at most.
        crc: whether MindSpore's CRC is appended to a `.ckpt`.
    """

    model: str
    direction: Direction
    options: Options
    dtype: DType | None
    format: str
    max_shard_size: int
    crc: bool

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
        }


def recorded_arguments(values: Mapping[str, object], dtype_words: Mapping[str, str]) -> dict[str, object]:
    """Return the arguments of `plan` that give the same settings again.

    Args:
        values: settings as `to_json` made them, checked.
        dtype_words: name of a dtype -> what `plan` calls it.

    Raises:
        KeyError: a setting is missing, or a dtype is none that `plan` casts to.
    """
    dtype = values["dtype"]
    return {
        "model": values["model"],
        "reverse": values["direction"] == Direction.REVERSE.value,
        "dtype": None if dtype is None else dtype_words[str(dtype)],
        "options": values["options"],
        "format": "hf" if values["format"] == "peft" else values["format"],
        "max_shard_size": values["max_shard_size"],
        "crc": values["crc"],
    }
