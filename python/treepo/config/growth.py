"""How a tree grows: branching and budget."""

from dataclasses import dataclass
from enum import StrEnum

from treepo.config.schema import Section, above, check_counts


class BranchBy(StrEnum):
    """What the live paths of a tree are weighted by where it branches."""

    EVEN = "even"
    """Every live path gets the same share."""
    PATH_LOGPROB = "path_logprob"
    """Sum of the log-probabilities of the path's sampled tokens."""
    MEAN_LOGPROB = "mean_logprob"
    """Mean of the log-probabilities of the path's sampled tokens."""
    SEGMENT_LOGPROB = "segment_logprob"
    """Mean of the log-probabilities of the path's last segment."""
    SEGMENT_ENTROPY = "segment_entropy"
    """Mean of the full-vocabulary entropies of the path's last segment."""
    SCORE = "score"
    """The judge's score of the path's last segment."""
    TOKEN_SURPRISAL = "token_surprisal"
    """No share: forks leave the tokens of the round with the largest surprisal, -logprob, the
    `num_positions` largest of each path's segment, `copies` each (EPTree, arXiv 2506.11902)."""
    TOKEN_ENTROPY = "token_entropy"
    """As token_surprisal, by full-vocabulary entropy."""
    TOKEN_ENTROPY_ABOVE = "token_entropy_above"
    """Forks leave the first `num_positions` tokens of each path's segment whose entropy is above
    `threshold`, `copies` each."""


class Prefer(StrEnum):
    """Which end of a weighting gets more."""

    LOW = "low"
    """Small values: unlikely paths explore."""
    HIGH = "high"
    """Large values."""


class Remainder(StrEnum):
    """Who gets what is left when the budget cannot be split evenly."""

    DRAWN = "drawn"
    """Neighbours from a keyed random place on, so that no path is preferred."""
    LAST = "last"
    """The last path, as the published script of TreePO does."""


class TemperatureSchedule(StrEnum):
    """How the branch temperature moves with the training's progress."""

    CONSTANT = "constant"
    """It stays at `temperature`."""
    LINEAR = "linear"
    """In a straight line to `final_temperature`."""
    SINUSOID = "sinusoid"
    """(a + b) / 2 + (b - a) / 2 * sin(pi * progress - pi / 2), from a to b."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BranchConfig(Section):
    """How the live paths of a tree share its branching budget.

    Of the forks of a round every live path keeps one; the rest goes by softmax(-+x / temperature)
    over what the paths are weighted by, with the largest remainder.
    """

    by: BranchBy = BranchBy.EVEN
    """What live paths are weighted by, or which tokens are forked."""
    prefer: Prefer = Prefer.LOW
    """Which end of the weights gets more."""
    temperature: float = 1.0
    """Temperature of the softmax over the weights."""
    final_temperature: float = 1.0
    """Temperature at the end of the training, for a schedule."""
    schedule: TemperatureSchedule = TemperatureSchedule.CONSTANT
    """How the temperature moves with the training."""
    remainder: Remainder = Remainder.DRAWN
    """Who gets what is left of an even split."""
    num_positions: int = 2
    """Positions of a segment that the token rules fork."""
    copies: int = 1
    """Forks of each such position."""
    threshold: float = 1.0
    """Entropy in nats above which token_entropy_above forks."""

    def _check(self) -> None:
        above("temperature", self.temperature, 0)
        above("final_temperature", self.final_temperature, 0)
        check_counts(self)


class Transfer(StrEnum):
    """Whether paths that have just finished pass their forks on to their living siblings."""

    ON = "on"
    """They do."""
    OFF = "off"
    """Their forks are lost."""


class Total(StrEnum):
    """What limits a whole tree, besides its width."""

    TRAJECTORIES = "trajectories"
    """Nothing: a tree has `width` leaves."""
    UNIQUE_TOKENS = "unique_tokens"
    """`max_tokens` sampled tokens, each counted once: forks are made as long as a segment of each
    path is paid for. Live paths go on beyond the total."""
    PUBLISHED_TOKENS = "published_tokens"
    """`max_tokens` as the published code counts them: the whole completions of leaves."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BudgetConfig(Section):
    """How much a tree may grow."""

    transfer: Transfer = Transfer.ON
    """Whether paths that have just finished pass their forks on."""
    total: Total = Total.TRAJECTORIES
    """What limits a tree besides its width."""
    max_tokens: int | None = None
    """Sampled tokens of a tree at most, for the token totals; absent: no limit."""
    min_width: int = 1
    """Leaves that a tree gets in spite of a token total."""

    def _check(self) -> None:
        check_counts(self)
