"""Words that both sides share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Tensors = Mapping[str, Array]
Inputs = tuple[Array, ...]

#: What config.json holds, or what makes it.
Config = Mapping[str, Any]


def token_ids(vocabulary: int, *shape: int) -> Array:
    """Random tokens but the first eight, which models give meanings: MindFormers masks padding wherever it stands."""
    return np.random.default_rng(0).integers(8, vocabulary, shape).astype(np.int32)
