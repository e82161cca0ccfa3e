"""Types of the NumPy arrays that hold elements of tensors."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

#: Elements as raw bits, in unsigned integers of their width; where a kernel asks for them, as floats.
Bits: TypeAlias = NDArray[Any]

#: Bytes of whatever elements.
Bytes: TypeAlias = NDArray[np.uint8]

#: The unsigned integers that hold the bits of one element.
BitType: TypeAlias = np.dtype[np.unsignedinteger[Any]]
