"""What MindSpore's training callbacks, optimizers and networks add to a checkpoint.

Sources: MindFormers 1.3 to 2.1, `core/callback` and `checkpoint` (what CheckpointMonitor appends, and what it leaves
out by name), and the parameters of its graph and PyNative networks that are not trained.
"""

from __future__ import annotations

from functools import cache

from .matcher import Matcher
from .statements import Drop, Side, Statement

_OPTIMIZER = ("adam_m", "adam_v", "moments", "moment1", "moment2", "muon_m", "accu_grads", "fi_parameter")

_RUN = (
    *("global_step", "epoch_num", "step_num", "batch_num", "global_batch_size", "learning_rate", "network"),
    *("beta1_power", "beta2_power", "loss_scale", "scale_sense"),
    *("current_iterator_step", "last_overflow_iterator_step"),
)

#: Of experts: how many tokens each got; the bias that balances them is a parameter of the model, not among these.
_OF_EXPERTS = ("fi_accu", "expert_load", "tokens_per_expert", "global_tokens_per_expert", "ga_steps")
_OF_ATTENTION = ("max_logits_val", "key_cache", "value_cache", "zeros_k_pe", "zeros_k_nope", "zeros_value_states")
_OF_DEVICES = ("_device_local_norm", "_device_local_loss")

TRAINING_STATE: tuple[Statement, ...] = (
    Drop("state of the optimizer", ms=tuple(f"{prefix}.{{rest:*}}" for prefix in _OPTIMIZER)),
    Drop("state of the training run", ms=_RUN),
    Drop(
        "a buffer of the training network, not trained",
        ms=(
            *(f"{{place:*}}.{name}" for name in (*_OF_EXPERTS, *_OF_ATTENTION)),
            *_OF_ATTENTION,
            *(f"{name}{{rest:*}}" for name in _OF_DEVICES),
            *(f"{{place:*}}.{name}{{rest:*}}" for name in _OF_DEVICES),
        ),
    ),
)


def is_training_state(name: str) -> bool:
    """Return whether a tensor of a MindSpore checkpoint belongs to the training, not to the model."""
    return _matcher().match(name) is not None


@cache
def _matcher() -> Matcher:
    return Matcher(TRAINING_STATE, Side.MS)
