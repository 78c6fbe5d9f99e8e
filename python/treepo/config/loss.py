"""The policy loss: what is compared, how it is clipped, what it is averaged over."""

from dataclasses import dataclass
from enum import StrEnum

from treepo.config.schema import Section, above, at_most
from treepo.errors import InvalidConfigError


class Ratio(StrEnum):
    """Which probabilities the new and the old policy are compared by."""

    TOKEN = "token"
    """The token's: exp(logprob - old logprob)."""
    TRAJECTORY = "trajectory"
    """The trajectory's, per token: exp of the mean over its tokens (GSPO, arXiv:2507.18071)."""


class Objective(StrEnum):
    """What is maximised."""

    CLIP = "clip"
    """min(r A, clip(r) A): beyond the edges a token has no gradient (PPO, GRPO, DAPO, GSPO)."""
    CISPO = "cispo"
    """clip(r) A logprob, clip(r) without a gradient: every token has one (arXiv:2506.13585)."""


class Average(StrEnum):
    """What the loss is a mean over."""

    TOKENS = "tokens"
    """All trajectory tokens of the optimizer step (DAPO)."""
    TRAJECTORIES = "trajectories"
    """The trajectories, each the mean over its tokens (GRPO, GSPO)."""
    MAX_TOKENS = "max_tokens"
    """The tokens that the trajectories could have had at most: a constant (Dr. GRPO)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LossConfig(Section):
    """The policy loss; the defaults are DAPO's (arXiv:2503.14476, eq. 8 and 12)."""

    clip_low: float = 0.2
    """The probability ratio is clipped below 1 - clip_low."""
    clip_high: float = 0.28
    """The probability ratio is clipped above 1 + clip_high."""
    dual_clip: float | None = None
    """With a negative advantage the ratio counts as this much at most (arXiv:1912.09729)."""
    ratio: Ratio = Ratio.TOKEN
    """Which probabilities are compared."""
    objective: Objective = Objective.CLIP
    """What is maximised."""
    average: Average = Average.TOKENS
    """What the loss is a mean over."""

    def _check(self) -> None:
        above("clip_low", self.clip_low, 0)
        at_most("clip_low", self.clip_low, 1)
        above("clip_high", self.clip_high, 0)
        if self.dual_clip is not None:
            above("dual_clip", self.dual_clip, 1)
            if self.objective is not Objective.CLIP:
                raise InvalidConfigError(
                    f"dual_clip = {self.dual_clip:g} belongs to objective clip, not to "
                    f"{self.objective.value}; leave it out"
                )
