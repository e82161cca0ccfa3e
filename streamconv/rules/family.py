"""Families as data: the configs they recognise, their options, sizes and rules."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from msgspec import Struct, field

from ..errors import UsageError
from ..text import quote, setting
from .fused import EXPERTS, TOGETHER, Fused
from .sizes import Sizes
from .statements import Side, Statement
from .training_state import TRAINING_STATE

#: The family that keeps every name and layout.
RAW = "raw"

Value = bool | int | str
Options = Mapping[str, Value]
Config = Mapping[str, object]

#: The key of a config under which `Family.rules` finds the `Reference`. No config.json can have one: it is no JSON.
REFERENCE = "reference"


class Reference(Struct, frozen=True):
    """What a checkpoint of the side that is written holds: its names and shapes.

    Attributes:
        side: the side.
        shapes: name -> shape.
    """

    side: Side
    shapes: Mapping[str, tuple[int, ...]]


class Option(Struct, frozen=True):
    """A choice that a family leaves to the user.

    Attributes:
        name: what users type: `-o NAME=VALUE`.
        values: the allowed values; the first is the default.
        help: what the values mean, in a phrase.
        is_preference: the value is the user's wish for the result, and in reverse the first one that fits is taken. Of
            any other option the value is a fact about the source: in reverse, if several fit, the user is asked.
        infer_from_names: forward, infer the value from the names of a HuggingFace source: the first value under which
            the table matches all of them.
        any_positive: any whole number from 1 up is allowed; `values` are those tried in reverse.
        config_updates: value -> the entries it changes in the converted model's config.
        yaml_key: key in a MindFormers YAML's `model_config` that holds the value.
    """

    name: str
    values: tuple[Value, ...]
    help: str
    is_preference: bool = False
    infer_from_names: bool = False
    any_positive: bool = False
    config_updates: Mapping[Value, Mapping[str, object]] = field(default_factory=dict)
    yaml_key: str = ""

    @property
    def default(self) -> Value:
        """The value where none is given."""
        return self.values[0]

    def parse(self, text: str) -> Value:
        """Parse a value as users type it.

        Raises:
            UsageError: it is not one of the option's values.
        """
        for value in self.values:
            if spell(value).lower() == text.strip().lower():
                return value
        if self.any_positive:
            return whole_number(self.name, text)
        allowed = ", ".join(spell(v) for v in self.values)
        raise UsageError(f"{setting(f'options.{self.name}', quote(text))}: not one of {allowed}")


def spell(value: Value) -> str:
    """Spell a value as users type it: `true`, `blocks`, `4`."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def whole_number(name: str, text: str) -> int:
    """Parse a whole number from 1 to 2^31 - 1.

    Raises:
        UsageError: it is none.
    """
    if not (text.strip().isdecimal() and text.isascii() and 0 < int(text) < 1 << 31):
        raise UsageError(f"{setting(f'options.{name}', quote(text))}: not a whole number from 1 up")
    return int(text)


class Family(Struct, frozen=True):
    """A model family: everything that streamconv knows about it.

    Attributes:
        name: what users type: `--model NAME`.
        title: one line for people.
        rules: a function of a config and the value of every option that returns the table.
        repositories: HuggingFace repositories it covers.
        model_types: values of `model_type` in config.json by which it is recognised.
        architectures: values of `architectures` by which it is recognised where no family covers the `model_type`.
        required_keys: keys that the config must have too; of several families, the one with the most is taken.
        sizes: symbol -> config keys and `=expressions`, tried in order, separated by `|`.
        manual_sizes: option -> symbol: sizes that users may give; config and shapes have to agree with them.
        options: choices that users have.
        ranges: hole -> its values: `"layers"` means 0 to layers - 1, `"dense..layers"` begins at `dense`; a hole
            without a range takes any number.
        example: the config for which `models NAME` shows the table.
        successors: `model_type` -> the family to use instead of this one.
        fused: how HuggingFace's tensors are fused, or what they are called, in sources that have not the table's; with
            the option `experts` they are written so in reverse.
        torch_root: key under which a torch file of this family nests its tensors, if it does.
        differs_from_mindformers: where the output differs from that of MindFormers' own converter, and why.
        drops_training_state: drop what MindSpore's optimizers and callbacks add to a checkpoint; no rule is needed for
            it.
        reads_reference: the rules depend on a checkpoint of the side that is written, in the directory given as config.
    """

    name: str
    title: str
    rules: Callable[[Config, Options], Sequence[Statement]]
    repositories: tuple[str, ...] = ()
    model_types: tuple[str, ...] = ()
    architectures: tuple[str, ...] = ()
    required_keys: tuple[str, ...] = ()
    sizes: Mapping[str, str] = field(default_factory=dict)
    manual_sizes: Mapping[str, str] = field(default_factory=dict)
    options: tuple[Option, ...] = ()
    ranges: Mapping[str, str] = field(default_factory=lambda: {"layer": "layers", "expert": "experts"})
    example: Config = field(default_factory=dict)
    successors: Mapping[str, str] = field(default_factory=dict)
    fused: tuple[Fused, ...] = ()
    torch_root: str | None = None
    differs_from_mindformers: tuple[str, ...] = ()
    drops_training_state: bool = True
    reads_reference: bool = False

    def table(self, config: Config, options: Options) -> Sequence[Statement]:
        """Return all statements: the family's rules, and how training state is treated.

        Raises:
            UsageError: the options do not go together.
        """
        return [*self.rules(config, options), *(TRAINING_STATE if self.drops_training_state else ())]

    def sized(self, config: Config, options: Options) -> Sizes:
        """Return the sizes of a model of this config; `options` may give some of them.

        Raises:
            UsageError: config and options contradict each other.
        """
        given = {s: (name, n) for name, s in self.manual_sizes.items() if isinstance(n := options.get(name), int)}
        return Sizes(self.sizes, config, given)

    def fused_in_reverse(self, options: Options) -> tuple[Fused, ...]:
        """Return how tensors are fused that a reverse conversion with these options writes."""
        return self.fused if options.get(EXPERTS) == TOGETHER else ()

    def config_updates(self, options: Options) -> Config:
        """Return the entries that these options change in the converted model's config."""
        chosen = [option.config_updates.get(options[option.name], {}) for option in self.options]
        return {key: value for part in chosen for key, value in part.items()}
