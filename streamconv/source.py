"""A source, opened: its tensors, its config, the manifest of the run that made it, and its model family."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from .arguments import as_path
from .configs import model_config, peft, peft_scale, quantisation
from .configs.model_config import ModelConfig
from .engine import budget
from .engine.windows import numbers_in, same_start
from .errors import SourceError, StreamconvError, UnsupportedError, UsageError
from .families import registry
from .families.raw import KEEP, QUANTISED
from .output import manifest
from .output.manifest import Manifest
from .paths import PathLike
from .planning import cutting, dequantising, suggestions
from .planning.dequantising import Understood
from .planning.mapping import Request, TensorMapping
from .planning.options import decided_mapping, from_yaml
from .ranks import strategies
from .ranks.opening import open_checkpoint
from .ranks.references import open_reference
from .ranks.strategies import Strategy
from .rules.family import Family, Reference, Value
from .rules.statements import Direction
from .tensors.dtypes import DType
from .tensors.refs import Catalog
from .text import first_few, quote, setting
from .units import parse_size

#: Families that are suggested at most.
_MOST_SHOWN = 12

#: What findings say that a slice may cause: of a tensor, or of a pipeline stage.
_OF_SLICES = ("does not fit [", ": missing")


class Source(Struct, frozen=True, kw_only=True, dict=True):
    """A source, opened.

    Attributes:
        catalog: its tensors.
        config: the model's config.
        made_by: the manifest, if streamconv made it.
        memory_limit: bytes of resident memory allowed.
        given_config: what was given as config.
        referred: the checkpoint that the config's reference lists, if it has one.
    """

    catalog: Catalog
    config: ModelConfig
    made_by: Manifest | None
    memory_limit: int
    given_config: Path | None = None
    referred: tuple[Path, ...] = ()

    @classmethod
    def open(
        cls,
        source: PathLike,
        max_mem: str | int | None,
        config: PathLike | None,
        strategy: Sequence[Path] = (),
        step: str | int | None = None,
    ) -> Source:
        """Read the headers of a source, and the small files next to it, within the memory limit.

        Args:
            source: a checkpoint, or what a training left.
            max_mem: resident memory allowed.
            config: the model's config, if it is not next to the source.
            strategy: what tells how the ranks of a training hold its tensors.
            step: which step of a training.

        Raises:
            StreamconvError: an argument does not parse, a file is broken, or the limit does not suffice.
        """
        limit = budget.default_limit() if max_mem is None else parse_size(max_mem, setting("max_mem"))
        path = as_path(source, "source")
        catalog = open_checkpoint(
            path, lambda: budget.header_room(limit), strategy, None if step is None else str(step)
        )
        budget.check_planning(limit, len(catalog))
        file = None if config is None else as_path(config, "config")
        return cls(
            catalog=catalog,
            config=model_config.load(catalog.directory, file, budget.header_room(limit, len(catalog))),
            made_by=manifest.find(path, budget.header_room(limit, len(catalog))),
            memory_limit=limit,
            given_config=file,
        )

    def referring(self, family: Family, direction: Direction) -> Source:
        """Return the source with a config that has the reference, if the family reads it and there is one.

        Args:
            family: the model family.
            direction: which side the source is; the reference is of the other.

        Raises:
            StreamconvError: the reference cannot be read, is not read, or the limit does not suffice.
        """
        given = self.given_config
        if given is None:
            return self
        if not family.reads_reference:
            self._check_config_is_read(given, family)
            return self
        found = open_reference(given, self.catalog, direction.target, partial(budget.header_room, self.memory_limit))
        if found is None:
            return self
        budget.check_planning(self.memory_limit, len(self.catalog) + len(found))
        reference = Reference(direction.target, {name: ref.shape for name, ref in found.items()})
        return replace(self, config=replace(self.config, reference=reference), referred=(given,))

    def _check_config_is_read(self, given: Path, family: Family) -> None:
        """Refuse weights without a config where a family reads only the config.

        Raises:
            UsageError: they were given.
        """
        if self.config.path not in (given, given / model_config.CONFIG):
            raise UsageError(
                f"{setting('config', quote(given))} holds weights and no config, and {family.name} reads only a config",
                f"give the model's config.json or MindFormers' YAML with {setting('config', 'FILE')}",
            )

    def family(self, model: str | None, own: PathLike | None, direction: Direction) -> tuple[Family, str]:
        """Return the model family, and how it is known.

        Args:
            model: its name, if it was given.
            own: a Python file that defines it, if one was given.
            direction: which side the source is.

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
        try:
            return registry.recognise(self.config.values)
        except (UnsupportedError, UsageError) as error:
            raise self._with_suggestion(error, direction) from error

    def _with_suggestion(self, error: StreamconvError, direction: Direction) -> StreamconvError:
        """Return the error with the families whose names are those of the source, if there are any."""
        config = self.config.values
        fitting = suggestions.fitting_families(registry.families(), self.understood.catalog, config, direction)
        if not fitting:
            return error
        message, hint = error.marked
        if len(fitting) == 1:
            hint = f"if it is one, give {setting('model', fitting[0])}; otherwise {hint}"
        return type(error)(f"{message}; the names of its tensors are those of {first_few(fitting, _MOST_SHOWN)}", hint)

    @staticmethod
    def _own(model: str | None, file: PathLike) -> Family:
        family = registry.load(file)
        if model not in (None, family.name):
            raise UsageError(
                f"{setting('family', quote(file))} defines {quote(family.name)}, not {quote(model)}",
                f"omit {setting('model')}",
            )
        return family

    def strategy(self, paths: Sequence[Path]) -> Strategy | None:
        """Read the strategy of a training within the memory limit, `None` of no path.

        Raises:
            StreamconvError: a file is broken, or does not go with the others.
        """
        if not paths:
            return None
        return strategies.read(paths, lambda: budget.header_room(self.memory_limit, len(self.catalog)))

    def cut(self, mapping: TensorMapping, strategy: Strategy) -> TensorMapping:
        """Cut the outputs for the ranks of a training.

        Raises:
            BudgetError: planning so many slices takes more than the memory limit.
            UnsupportedError: the strategy does not fit them.
        """
        budget.check_planning(self.memory_limit, cutting.slices(mapping, strategy))
        return cutting.cut_for_ranks(mapping, strategy)

    @cached_property
    def understood(self) -> Understood:
        """The source with its quantised tensors read as the weights that they stand for.

        Raises:
            SourceError: a file that describes them cannot be read.
            UnsupportedError: they are quantised by a method that is not read.
        """
        if not dequantising.may_be_quantised(self.catalog):
            return Understood(self.catalog)
        room = budget.header_room(self.memory_limit, len(self.catalog))
        description = quantisation.described(self.config.values, self.catalog.directory, room)
        found = dequantising.understood(self.catalog, description, numbers_in)
        if description is None and (method := quantisation.sign(self.catalog)):
            raise UnsupportedError(
                f"the source is quantised with {method}, and this method is not read", dequantising.INSTEAD
            )
        return found

    def _kept(self, dtype: DType | None) -> Understood:
        if dtype is not None:
            raise UsageError(
                f"{setting(f'options.{QUANTISED}', KEEP)} keeps every tensor as it is, and {setting('dtype')} does not",
                f"omit {setting('dtype')}",
            )
        return Understood(self.catalog)

    def map(
        self, family: Family, direction: Direction, dtype: DType | None, given: Mapping[str, Value]
    ) -> TensorMapping:
        """Decide the options of the family that were not given, and map every tensor.

        Raises:
            StreamconvError: a tensor does not fit, or several values of an option do.
        """
        understood = self._kept(dtype) if given.get(QUANTISED) == KEEP else self.understood
        request = Request(
            understood.catalog, family, self.config.for_rules, direction, dtype, same_start, understood=understood
        )
        recorded = (self.made_by.text("model"), self.made_by.options) if self.made_by else None
        self._check_whole(family)
        try:
            return decided_mapping(request, given, recorded, from_yaml(family, self.config.yaml_values))
        except (SourceError, UnsupportedError) as error:
            if request.keeps_all:
                raise
            raise self._explained(error) from error

    def _check_whole(self, family: Family) -> None:
        """Refuse what may be one rank's slices where no config tells the shapes of the whole model.

        Raises:
            UsageError: the file is named like that of one rank, and there is no config.
        """
        if self.catalog.slice_of and family.sizes and not self.config.values:
            raise UsageError(
                f"{self.catalog.slice_of}, and no config tells whether its shapes are those of the whole model",
                f"give the model's config.json or MindFormers' YAML with {setting('config', 'FILE')}",
            )

    def _explained(self, error: StreamconvError) -> StreamconvError:
        """Return why the tensors of a source fit no model, if its small files or its names tell the cause."""
        directory = self.catalog.directory
        if self.catalog.slice_of and any(sign in str(error) for sign in _OF_SLICES):
            return UnsupportedError(
                f"{self.catalog.slice_of}, and its tensors are not those of the whole model: "
                f"it holds one rank's slices, or the config is another model's\n{error.marked[0]}",
                "give the directory that holds the files of all ranks, not of one",
            )
        if peft.has_adapters(self.catalog):
            reason = peft_scale.unsupported(peft.read(self.config, directory), fits=False)
            return UnsupportedError(reason, peft_scale.MERGE) if reason else error
        return error
