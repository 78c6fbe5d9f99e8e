"""The config of the search; presets and the rules between keys are the core's."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Self, TypeVar

from treepo import core
from treepo.config.growth import BranchConfig, BudgetConfig
from treepo.config.leaves import FallbackConfig, FallbackFrom, PruneConfig, StopConfig
from treepo.config.schema import (
    Section,
    at_most,
    check_counts,
    completed,
    convert,
    field_types,
)
from treepo.errors import InvalidConfigError

_MAX_WIDTH = 1_000_000

C = TypeVar("C", bound=type[Section])


class Verdicts(StrEnum):
    """Whether a judge is asked about segments."""

    NOTHING = "nothing"
    """It is not."""
    SEGMENTS = "segments"
    """Each path that goes on waits at the end of its segment for the judge's verdict."""


class Opportunistic(StrEnum):
    """Rules that look across trees; they make a tree not replayable and are off in every preset."""

    OFF = "off"
    """None."""
    STEP_TOKENS = "step_tokens"
    """The live paths of all open trees share `step_tokens` tokens a segment: a tree has at most
    step_tokens / open trees / segment_len live paths, without transfer."""


def _starting_from_presets(cls: C) -> C:
    """Let the constructor take what is not given from the preset, and not from the defaults."""
    plain_init = cls.__init__

    @functools.wraps(plain_init)
    def init(self: Any, *, preset: str | None = None, **given: Any) -> None:
        base = {} if preset is None else _preset_fields(cls, preset)
        plain_init(self, **{**base, **completed(cls, given, base), "preset": preset})

    cls.__init__ = init  # type: ignore[method-assign]
    return cls


@_starting_from_presets
@dataclass(frozen=True, kw_only=True, slots=True)
class SearchConfig(Section):
    """How a tree grows and where it ends; TreePO's search (arXiv 2508.17445, algorithm 1).

    `SearchConfig(preset="treepo", width=8)` has the preset's value where none is given; so has a
    file or command line with `search.preset`. A number that the chosen rule does not use is
    ignored. Lengths are in tokens.
    """

    preset: str | None = None
    """Published search to start from; the other keys override its values."""
    width: int = 8
    """Leaves a tree ends with. At least 1."""
    segment_len: int = 64
    """Tokens a segment holds at most; trees branch at segment ends."""
    max_depth: int = 8
    """Segments from the prompt to a leaf at most."""
    branch_factor: int = 2
    """Children of a live path at the end of a round, before budget transfer."""
    max_branch_factor: int | None = None
    """With this, each round's factor is drawn of branch_factor..max_branch_factor."""
    initial_divergence: int = 2
    """Paths that leave the prompt at first; more than `width` counts as `width`."""
    max_initial_divergence: int | None = None
    """With this, they are drawn of initial_divergence..max_initial_divergence."""
    branch: BranchConfig = field(default_factory=BranchConfig)
    """How live paths share the budget."""
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    """How much a tree may grow."""
    fallback: FallbackConfig = field(default_factory=FallbackConfig)
    """Where missing leaves come from."""
    stop: StopConfig = field(default_factory=StopConfig)
    """What ends a path."""
    prune: PruneConfig = field(default_factory=PruneConfig)
    """What is given up."""
    verdicts: Verdicts = Verdicts.NOTHING
    """Whether a judge is asked about segments; `Engine.rollout` takes one."""
    opportunistic: Opportunistic = Opportunistic.OFF
    """Rules that look across trees."""
    step_tokens: int = 8192
    """Tokens a segment that the live paths of all trees share, for step_tokens."""
    max_completion_len: int | None = None
    """Tokens a completion holds at most; absent: segment_len * max_depth."""

    def _check(self) -> None:
        check_counts(self)
        at_most("width", self.width, _MAX_WIDTH)
        longest = self.segment_len * self.max_depth
        if self.max_completion_len is not None and self.max_completion_len > longest:
            raise InvalidConfigError(
                f"max_completion_len = {self.max_completion_len} is above segment_len x max_depth "
                f"= {longest}, which no completion exceeds; raise max_depth or segment_len"
            )
        try:
            core.SearchConfig(**_core_values(self))
        except InvalidConfigError as error:
            raise _renamed(error) from None

    @classmethod
    def _base(cls, data: Mapping[str, Any], base: Self | None) -> Self | None:
        preset = convert(data.get("preset"), str | None, "preset")
        return base if preset is None else cls(preset=preset)

    @classmethod
    def _starts_anew(cls, data: Mapping[str, Any]) -> bool:
        return data.get("preset") is not None

    @property
    def completion_len(self) -> int:
        """Tokens a completion holds at most, from depth, segments and the explicit limit."""
        longest = self.segment_len * self.max_depth
        return longest if self.max_completion_len is None else min(longest, self.max_completion_len)

    @property
    def needs_texts(self) -> bool:
        """Whether a rule reads the text of tokens, for which a tokenizer is needed."""
        return self.stop.needs_texts

    @classmethod
    def flat(
        cls,
        n: int,
        max_tokens: int,
        stop: StopConfig | None = None,
        *,
        segment_len: int | None = None,
    ) -> Self:
        """Return the search of `n` independent completions: all forks are at the prompt.

        Args:
            n: Completions of each prompt.
            max_tokens: Tokens of a completion at most.
            stop: What ends a completion besides its length and an end of sequence.
            segment_len: Tokens after which rules that act at the ends of segments do; absent: at
                the end only.
        """
        segment_len = min(segment_len or max_tokens, max_tokens)
        return cls(
            width=n,
            segment_len=segment_len,
            max_depth=-(-max_tokens // max(1, segment_len)),
            max_completion_len=max_tokens,
            branch_factor=1,
            initial_divergence=n,
            fallback=FallbackConfig(from_=FallbackFrom.NOTHING),
            stop=stop or StopConfig(),
        )

    def to_core(
        self, eos_token_ids: tuple[int, ...], max_model_len: int, *, progress: float = 0.0
    ) -> core.SearchConfig:
        """Return the core's form of this config.

        Args:
            eos_token_ids: Tokens that end a completion.
            max_model_len: Tokens a path holds at most, prompt included.
            progress: How far the training is, from 0 to 1, for `branch.schedule`.

        Returns:
            The core's checked config.

        Raises:
            InvalidConfigError: The core refuses a value.
        """
        try:
            return core.SearchConfig(
                **_core_values(self),
                max_model_len=max_model_len,
                eos_token_ids=list(eos_token_ids),
                progress=progress,
            )
        except InvalidConfigError as error:
            raise _renamed(error) from None


def _core_values(config: Section) -> dict[str, Any]:
    """Return the core's keyword arguments; what is absent has the same default there."""

    def given(values: Mapping[str, Any]) -> dict[str, Any]:
        return {
            key: given(value) if isinstance(value, Mapping) else value
            for key, value in values.items()
            if value is not None and key != "preset"
        }

    return given(config.to_dict())


def _preset_fields(cls: type[Section], name: str) -> dict[str, Any]:
    """Return the fields that a preset sets apart from the defaults, sections whole."""
    name = convert(name, str, "preset")
    try:
        chosen = core.SearchConfig.preset(name).to_dict()
    except InvalidConfigError as error:
        raise _renamed(error) from None
    changed = _changes(chosen, core.SearchConfig().to_dict())
    return cls.from_dict({key: changed[key] for key in field_types(cls) if key in changed}).fields()


def _changes(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _changes(value, defaults[key]) if isinstance(value, Mapping) else value
        for key, value in values.items()
        if value != defaults[key]
    }


def _renamed(error: InvalidConfigError) -> InvalidConfigError:
    # The core writes "field: message"; the messages of sections begin with the field's name.
    return InvalidConfigError(str(error).replace(": ", " ", 1))
