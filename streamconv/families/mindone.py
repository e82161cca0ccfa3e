"""Any model as mindone's `save_pretrained` writes it: only what cells of MindSpore's own hold has other names.

Which cells a model has, only a reference tells: a checkpoint of MindSpore's side forward, and in reverse, where there
are convolutions, of HuggingFace's.
"""

from __future__ import annotations

from ..rules.family import Family, Option
from .parts import cells

FAMILY = Family(
    name="mindone",
    title="Any model of mindone's, with a checkpoint that lists the names to write; never recognised from config.json",
    options=(
        Option(
            "conv1d",
            (cells.LISTED, False, True),
            "listed: as the checkpoint in the config's directory has them; in reverse without one, true: weights "
            "[out, in, 1, k] are Conv1d's, [out, in, k] in HuggingFace",
        ),
    ),
    rules=cells.rules,
    example=cells.EXAMPLE,
    drops_training_state=False,
    reads_reference=True,
    differs_from_mindformers=(
        "mindone itself has no way back to HuggingFace's names",
        "forward, the config's directory has to hold what mindone's save_pretrained wrote of the same model, of which "
        "only names and shapes are read: the table below is that of an example",
        "in reverse, endings of names decide (gamma and beta, moving_mean and moving_variance, embedding_table), but "
        "not for names of HuggingFace's checkpoint of the same model, if the config's directory holds it",
        "a model with convolutions of one dimension and others of height one needs HuggingFace's checkpoint in reverse",
        "without it, a gamma without a beta is refused: it may be a parameter that HuggingFace's model calls so too",
    ),
)
