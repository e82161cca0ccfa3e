"""Configs in sections: models of several parts have a config each, inside that of the whole (`text_config`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

Config = Mapping[str, object]

QUANTISATION = "quantization_config"
_SUFFIX = "_config"
_DEEPEST = 8


def sections(config: Config, depth: int = _DEEPEST) -> Iterator[Config]:
    """Yield a config, and those of the model's parts inside it, the outer ones first."""
    yield config
    for key, value in config.items() if depth else ():
        if _is_section(key, value):
            yield from sections(value, depth - 1)  # type: ignore[arg-type]


def in_every_section(config: Config, change: Callable[[dict[str, object]], None]) -> dict[str, object]:
    """Return a copy of a config in which `change` was applied to it and to those of the model's parts."""
    copy = {
        key: in_every_section(value, change) if _is_section(key, value) else value  # type: ignore[arg-type]
        for key, value in config.items()
    }
    change(copy)
    return copy


def quantisation(config: Config) -> Config:
    """Return what the config says about quantisation, wherever it says it; empty if it does not."""
    found = (section.get(QUANTISATION) for section in sections(config))
    return next((one for one in found if isinstance(one, dict)), {})


def _is_section(key: object, value: object) -> bool:
    return isinstance(key, str) and isinstance(value, dict) and key.endswith(_SUFFIX) and key != QUANTISATION
