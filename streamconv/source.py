"""A source, opened: its tensors, its config, the manifest of the run that made it, and its model family."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .arguments import as_path
from .configs import model_config
from .configs.model_config import ModelConfig
from .engine import budget
from .engine.windows import same_start
from .errors import UsageError
from .families import registry
from .formats.catalog import open_catalog
from .output import manifest
from .output.manifest import Manifest
from .paths import PathLike
from .planning.mapping import Request, TensorMapping
from .planning.options import decided_mapping, from_yaml
from .rules.family import Family, Value
from .rules.statements import Direction
from .tensors.dtypes import DType
from .tensors.refs import Catalog
from .text import quote, setting
from .units import parse_size


@dataclass(frozen=True, kw_only=True)
class Source:
    """A source, opened.

    Attributes:
        catalog: its tensors.
        config: the model's config.
        made_by: the manifest, if streamconv made it.
        memory_limit: bytes of resident memory allowed.
    """

    catalog: Catalog
    config: ModelConfig
    made_by: Manifest | None
    memory_limit: int

    @classmethod
    def open(cls, source: PathLike, max_mem: str | int | None, config: PathLike | None) -> Source:
        """Read the headers of a source, and the small files next to it, within the memory limit.

        Raises:
            StreamconvError: an argument does not parse, a file is broken, or the limit does not suffice.
        """
        limit = budget.default_limit() if max_mem is None else parse_size(max_mem, setting("max_mem"))
        path = as_path(source, "source")
        catalog = open_catalog(path, lambda: budget.header_room(limit))
        budget.check_planning(limit, len(catalog))
        file = None if config is None else as_path(config, "config")
        return cls(
            catalog=catalog,
            config=model_config.load(catalog.directory, file, budget.header_room(limit, len(catalog))),
            made_by=manifest.find(path, budget.header_room(limit, len(catalog))),
            memory_limit=limit,
        )

    def family(self, model: str | None, own: PathLike | None) -> tuple[Family, str]:
        """Return the model family, and how it is known.

        Args:
            model: its name, if it was given.
            own: a Python file that defines it, if one was given.

        Raises:
            UsageError: the file defines another family than the name, or nothing says which it is.
            UnsupportedError: the config names a model that no family covers.
        """
        if own is not None:
            return self._own(model, own), quote(own)
        if model is not None:
            return registry.choose(model, self.config.values), setting("model")
        if self.made_by is not None and isinstance(self.made_by["model"], str):
            return registry.find(self.made_by["model"]), self.made_by.path.name
        return registry.recognise(self.config.values)

    @staticmethod
    def _own(model: str | None, file: PathLike) -> Family:
        family = registry.load(file)
        if model not in (None, family.name):
            raise UsageError(
                f"{setting('family', quote(file))} defines {quote(family.name)}, not {quote(model)}",
                f"omit {setting('model')}",
            )
        return family

    def map(
        self, family: Family, direction: Direction, dtype: DType | None, given: Mapping[str, Value]
    ) -> TensorMapping:
        """Decide the options of the family that were not given, and map every tensor.

        Raises:
            StreamconvError: a tensor does not fit, or several values of an option do.
        """
        request = Request(self.catalog, family, self.config.values, direction, dtype, same_start)
        recorded = (self.made_by.text("model"), self.made_by.options) if self.made_by else None
        return decided_mapping(request, given, recorded, from_yaml(family, self.config.yaml_values))
