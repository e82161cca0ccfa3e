"""Regions: memory that is given back, and lies as the device wants it."""

from __future__ import annotations

import numpy as np

U8, U32 = np.dtype("<u1"), np.dtype("<u4")
