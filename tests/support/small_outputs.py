"""Shared by tests of the journal and the recorder: four small outputs, and the one file that they are laid out in."""

from __future__ import annotations

from streamconv.formats import layout
from streamconv.planning.outputs import Output
from streamconv.tensors import dtypes, views
from streamconv.tensors.refs import TensorSpec
from support import helpers

SHAPES = [(6, 8), (5,), (), (2, 3, 4)]
SPECS = [TensorSpec(f"t{number}", dtypes.BF16, shape) for number, shape in enumerate(SHAPES)]
OUTPUTS = [Output(s.name, s.dtype, views.leaf(helpers.ref(s.name, s.shape, "BF16")), ()) for s in SPECS]
FILES = layout.lay_out(SPECS, layout.CKPT, "a.ckpt", 1, False).files
