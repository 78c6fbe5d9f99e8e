"""The policy loss: what is compared, how it is clipped, what it is averaged over."""

from dataclasses import dataclass, field
from enum import StrEnum

from treepo.config.schema import Section, above, at_least, at_most
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


class Kl(StrEnum):
    """What a token's divergence from the reference is measured by; d = logprob - reference's.

    Source: Schulman, "Approximating KL divergence", 2020.
    """

    K1 = "k1"
    """d: unbiased, and its gradient is 0 in the mean, so it only adds noise to the loss."""
    K2 = "k2"
    """d^2 / 2: its gradient is that of the divergence."""
    K3 = "k3"
    """exp(-d) - 1 + d: unbiased and never negative (GRPO)."""


class Correct(StrEnum):
    """What is done where the sampler gave a token another probability than the trainer does."""

    NOTHING = "nothing"
    """Nothing: the loss compares with what the sampler recorded."""
    TRUNCATE = "truncate"
    """The token counts by min(w, max_ratio), w the trainer's probability over the sampler's."""
    MASK = "mask"
    """It counts by w where 1 / max_ratio <= w <= max_ratio, and not at all elsewhere."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CorrectionConfig(Section):
    """Importance correction between the code that samples and the code that trains.

    With it the loss compares with the log-probs that the trainer computes before the first
    optimizer step of a rollout, which costs one more forward pass.
    """

    by: Correct = Correct.NOTHING
    """What is done."""
    level: Ratio = Ratio.TOKEN
    """token: w of the token; trajectory: the product of w over the trajectory's tokens."""
    max_ratio: float = 2.0
    """Where w is cut."""

    def _check(self) -> None:
        at_least("max_ratio", self.max_ratio, 1)


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
    kl: Kl = Kl.K3
    """What the divergence from the reference is measured by."""
    kl_weight: float = 0.0
    """Weight of the divergence in the loss; 0 needs no reference."""
    entropy_weight: float = 0.0
    """Weight of a bonus for the entropy of each token's distribution; 0 is off."""
    correction: CorrectionConfig = field(default_factory=CorrectionConfig)
    """Importance correction between sampler and trainer."""

    def _check(self) -> None:
        above("clip_low", self.clip_low, 0)
        at_most("clip_low", self.clip_low, 1)
        above("clip_high", self.clip_high, 0)
        at_least("kl_weight", self.kl_weight, 0)
        if self.dual_clip is not None:
            above("dual_clip", self.dual_clip, 1)
            if self.objective is not Objective.CLIP:
                raise InvalidConfigError(
                    f"dual_clip = {self.dual_clip:g} belongs to objective clip, not to "
                    f"{self.objective.value}; leave it out"
                )
