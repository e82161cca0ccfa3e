"""What MindSpore's training callbacks and optimizers add to a checkpoint."""

from __future__ import annotations

from .statements import Drop, Statement

TRAINING_STATE: tuple[Statement, ...] = (
    Drop(
        "state of the optimizer",
        ms=tuple(f"{p}.{{rest:*}}" for p in ("adam_m", "adam_v", "moments", "moment1", "moment2", "accu_grads")),
    ),
    Drop(
        "state of the training run",
        ms=(
            "global_step",
            "epoch_num",
            "step_num",
            "batch_num",
            "learning_rate",
            "beta1_power",
            "beta2_power",
            "loss_scale",
            "scale_sense",
            "current_iterator_step",
            "last_overflow_iterator_step",
            "network",
        ),
    ),
)
