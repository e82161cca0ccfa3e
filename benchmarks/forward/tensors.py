"""Types and inputs that both sides share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Tensors = Mapping[str, Array]
Inputs = tuple[Array, ...]

#: The values of config.json, or those it is made from.
Config = Mapping[str, Any]


def token_ids(vocabulary: int, *shape: int) -> Array:
    """Return random tokens, none of the first eight: these are special, and MindFormers masks padding anywhere."""
    return np.random.default_rng(0).integers(8, vocabulary, shape).astype(np.int32)
