"""What a family is made of. A family is data: which configs it recognises, its options, its sizes, its rules."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from ..errors import UsageError, quote
from ..rules import Statement

Value = bool | int | str
Options = Mapping[str, Value]
Config = Mapping[str, object]


@dataclass(frozen=True)
class Option:
    """A choice that a family leaves to the user. The first of `values` is the default.

    In reverse, values that fit the source alike are an ambiguity to be resolved by the user; with `decides` false the
    first of them is meant. `settles` is what a value makes true of the converted model's config.
    """

    name: str
    values: tuple[Value, ...]
    help: str
    decides: bool = True
    settles: Mapping[Value, Mapping[str, object]] = field(default_factory=dict)

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
            if spell(value) == text.strip().lower():
                return value
        allowed = ", ".join(spell(v) for v in self.values)
        raise UsageError(f"{self.name}={quote(text)}: not one of {allowed}")


def spell(value: Value) -> str:
    """A value as the command line spells it: `true`, `blocks`, `4`."""
    return str(value).lower()


@dataclass(frozen=True)
class Family:
    """A model family.

    Attributes:
        name: what `--model` calls it.
        title: one line for people.
        repositories: HuggingFace repositories it covers.
        model_types: the `model_type` values of config.json that it recognises.
        sizes: symbol → config keys and `=expressions`, tried in order, `|` between them.
        rules: the table, for a config and a choice of options; every option is given.
        options: choices; the first value of each is the default.
        ranges: hole of the patterns → the numbers it may hold: `"layers"` are 0 … layers - 1, `"dense..layers"` begin
            at `dense`; a hole without any holds all.
        example: what a config says that the table which `models NAME` shows is for.
        successors: `model_type` → the family to take in this one's place.
    """

    name: str
    title: str
    rules: Callable[[Config, Options], Sequence[Statement]]
    repositories: tuple[str, ...] = ()
    model_types: tuple[str, ...] = ()
    sizes: Mapping[str, str] = field(default_factory=dict)
    options: tuple[Option, ...] = ()
    ranges: Mapping[str, str] = field(default_factory=lambda: {"layer": "layers", "expert": "experts"})
    example: Config = field(default_factory=dict)
    successors: Mapping[str, str] = field(default_factory=dict)

    def settled(self, options: Options) -> Config:
        """What these options make true of the converted model's config."""
        chosen = [option.settles.get(options[option.name], {}) for option in self.options]
        return {key: value for part in chosen for key, value in part.items()}
