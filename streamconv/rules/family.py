"""What a family is made of. A family is data: which configs it recognises, its options, its sizes, its rules."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from ..errors import UsageError
from ..text import quote
from .sizes import Sizes
from .statements import Statement

Value = bool | int | str
Options = Mapping[str, Value]
Config = Mapping[str, object]


@dataclass(frozen=True)
class Option:
    """A choice that a family leaves to the user. The first of `values` is the default.

    In reverse, values that fit the source alike are an ambiguity to be resolved by the user; with `decides` false the
    first of them is meant. With `told`, the names of an HF source tell the value forward too: the first under which the
    table knows them all. With `free` any whole number from 1 up may be given; `values` are those that are tried.
    `settles` is what a value makes true of the converted model's config. `said` is the key of a MindFormers YAML's
    `model_config` that tells the value.
    """

    name: str
    values: tuple[Value, ...]
    help: str
    decides: bool = True
    told: bool = False
    free: bool = False
    settles: Mapping[Value, Mapping[str, object]] = field(default_factory=dict)
    said: str = ""

    @property
    def default(self) -> Value:
        """What holds where nothing is said."""
        return self.values[0]

    def parse(self, text: str) -> Value:
        """The value that `text` spells.

        Raises:
            UsageError: none of the option's values is spelled so.
        """
        for value in self.values:
            if spell(value).lower() == text.strip().lower():
                return value
        if self.free:
            return whole_number(self.name, text)
        allowed = ", ".join(spell(v) for v in self.values)
        raise UsageError(f"{self.name}={quote(text)}: not one of {allowed}")


def spell(value: Value) -> str:
    """A value as the command line spells it: `true`, `blocks`, `4`."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def whole_number(name: str, text: str) -> int:
    """The number from 1 up that `text` spells.

    Raises:
        UsageError: it spells none.
    """
    if not (text.strip().isdecimal() and text.isascii() and 0 < int(text) < 1 << 31):
        raise UsageError(f"{name}={quote(text)}: a whole number from 1 up is needed")
    return int(text)


@dataclass(frozen=True)
class Family:
    """A model family.

    Attributes:
        name: what `--model` calls it.
        title: one line for people.
        repositories: HuggingFace repositories it covers.
        model_types: the `model_type` values of config.json that it recognises.
        architectures: for configs without `model_type`, the values of `architectures` that it recognises.
        marks: config keys that have to be there too; the family with the most of them is taken.
        sizes: symbol → config keys and `=expressions`, tried in order, `|` between them.
        numbers: option → symbol: numbers that may be given by hand; config and shapes have to agree.
        rules: the table, for a config and a choice of options; every option is given.
        options: choices; the first value of each is the default.
        ranges: hole of the patterns → the numbers it may hold: `"layers"` are 0 … layers - 1, `"dense..layers"` begin
            at `dense`; a hole without any holds all.
        example: what a config says that the table which `models NAME` shows is for.
        successors: `model_type` → the family to take in this one's place.
        torch_root: the key under which a torch file of this family holds its tensors, where it is nested.
        differs: where the output is not what MindFormers' own converter writes, and why.
    """

    name: str
    title: str
    rules: Callable[[Config, Options], Sequence[Statement]]
    repositories: tuple[str, ...] = ()
    model_types: tuple[str, ...] = ()
    architectures: tuple[str, ...] = ()
    marks: tuple[str, ...] = ()
    sizes: Mapping[str, str] = field(default_factory=dict)
    numbers: Mapping[str, str] = field(default_factory=dict)
    options: tuple[Option, ...] = ()
    ranges: Mapping[str, str] = field(default_factory=lambda: {"layer": "layers", "expert": "experts"})
    example: Config = field(default_factory=dict)
    successors: Mapping[str, str] = field(default_factory=dict)
    torch_root: str | None = None
    differs: tuple[str, ...] = ()

    def sized(self, config: Config, options: Options) -> Sizes:
        """The numbers of a model of this config; `options` may give some by hand.

        Raises:
            UsageError: config and options contradict each other.
        """
        given = {s: (f"-o {n}", value) for n, s in self.numbers.items() if isinstance(value := options.get(n), int)}
        return Sizes(self.sizes, config, given)

    def settled(self, options: Options) -> Config:
        """What these options make true of the converted model's config."""
        chosen = [option.settles.get(options[option.name], {}) for option in self.options]
        return {key: value for part in chosen for key, value in part.items()}
