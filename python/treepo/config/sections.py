"""The sections of the config tree but the search: model, data, engine, sampling, and so on."""

from dataclasses import dataclass, field
from enum import StrEnum

from treepo.config.schema import (
    MAX_COUNT,
    MAX_SEED,
    Section,
    above,
    at_least,
    at_most,
)
from treepo.errors import InvalidConfigError

_MAX_SAMPLES = 1_000_000
_MAX_TIMEOUT_S = 1_000_000
_MIN_TEMPERATURE = 0.001


class Schedule(StrEnum):
    """How the learning rate moves after the warm-up."""

    LINEAR = "linear"
    """Falls in a straight line over the planned steps, to `final_fraction`."""
    CONSTANT = "constant"
    """Stays."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingParams(Section):
    """How one token is drawn from the model's logits."""

    temperature: float = 1.0
    """Logits are divided by it; 0 takes the most likely token."""
    top_k: int = 0
    """Only the k most likely tokens may be drawn; 0 is off."""
    top_p: float = 1.0
    """Only the most likely tokens that together reach this mass may be drawn; 1 is off."""
    min_p: float = 0.0
    """Only tokens with at least this part of the largest probability may be drawn; 0 is off."""

    def _check(self) -> None:
        at_least("temperature", self.temperature, 0)
        if 0 < self.temperature < _MIN_TEMPERATURE:
            raise InvalidConfigError(
                f"temperature must be 0 (greedy) or at least {_MIN_TEMPERATURE}, "
                f"got {self.temperature}"
            )
        at_least("top_k", self.top_k, 0)
        at_most("top_k", self.top_k, MAX_COUNT)
        above("top_p", self.top_p, 0)
        at_most("top_p", self.top_p, 1)
        at_least("min_p", self.min_p, 0)
        at_most("min_p", self.min_p, 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig(Section):
    """Which model is trained."""

    path: str | None = None
    """Folder of a Hugging Face causal LM; absent: the embedded model."""
    reference: str | None = None
    """Folder of the reference model of `loss.kl_weight`, which is only logged if that is 0; absent:
    the model as training began."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraConfig(Section):
    """Low-rank adapters (LoRA, arXiv:2106.09685): only they are trained. Needs peft."""

    rank: int = 0
    """Rank of the adapters; 0 trains the whole model."""
    alpha: float = 16.0
    """The adapters' output is scaled by alpha / rank."""
    targets: tuple[str, ...] = ()
    """Names of the linear layers that get adapters; empty: all but the head."""

    def _check(self) -> None:
        at_least("rank", self.rank, 0)
        above("alpha", self.alpha, 0)


@dataclass(frozen=True, kw_only=True, slots=True)
class GymConfig(Section):
    """A task of reasoning-gym, trained on and, with other items, evaluated on."""

    task: str | None = None
    """Name of the task, such as chain_sum; absent: none. The reward is then `gym`."""
    size: int = 2000
    """Items to train on."""
    options: tuple[str, ...] = ()
    """The task's own options, such as max_terms=2."""

    def _check(self) -> None:
        at_least("size", self.size, 1)
        for option in self.options:
            if not option.partition("=")[2]:
                raise InvalidConfigError(f"options are written key=value, got {option!r}")


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig(Section):
    """Which prompts are used."""

    train: str | None = None
    """JSON-lines file with a `prompt` column to train on; absent: the embedded task."""
    eval: str | None = None
    """JSON-lines file with a `prompt` column to evaluate on; absent: the embedded task's held-out
    prompts, or no evaluation when `train` is set."""
    gym: GymConfig = field(default_factory=GymConfig)
    """Prompts made by a task of reasoning-gym."""

    def _check(self) -> None:
        if self.gym.task is not None and (self.train or self.eval):
            raise InvalidConfigError("gym.task and the files train and eval exclude each other")


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardConfig(Section):
    """How completions are scored."""

    name: str | None = None
    """exact_match, last_number, boxed, math_verify, gym, gym_partial, or `package.module:function`
    with TRL's signature; absent: the reward of the task, or exact_match with other data."""
    timeout_s: float = 5.0
    """Seconds one call may take before its worker is stopped; with `num_workers` 0 there is no
    limit."""
    num_workers: int = 1
    """Worker processes; 0 calls the function in the training process, without time limit."""
    overlong_buffer: int = 0
    """Tokens before the longest completion over which a punishment grows in training; 0 is off."""
    overlong_penalty: float = 1.0
    """Punishment of the longest completion (DAPO, arXiv:2503.14476, eq. 13)."""
    shuffle: bool = False
    """A control, not a method: rewards are permuted over the whole batch, so that a sound
    pipeline learns nothing."""

    def _check(self) -> None:
        above("timeout_s", self.timeout_s, 0)
        at_most("timeout_s", self.timeout_s, _MAX_TIMEOUT_S)
        at_least("num_workers", self.num_workers, 0)
        at_least("overlong_buffer", self.overlong_buffer, 0)
        at_least("overlong_penalty", self.overlong_penalty, 0)


@dataclass(frozen=True, kw_only=True, slots=True)
class AdvantageConfig(Section):
    """How rewards become advantages."""

    preset: str = "treepo"
    """A preset of treepo.advantages, see docs/advantages.md."""


class Activations(StrEnum):
    """What of a forward pass the backward pass finds."""

    KEEP = "keep"
    """All of it."""
    RECOMPUTE = "recompute"
    """The inputs of layers; the rest is computed again (activation checkpointing)."""


class Autocast(StrEnum):
    """Number format of matrix products in an update."""

    OFF = "off"
    """That of the weights."""
    BFLOAT16 = "bfloat16"
    """bfloat16, beside float32 weights. On a CPU an update then does not repeat sampling's bits."""


class TreeAttention(StrEnum):
    """How an update attends over a packed tree."""

    AUTO = "auto"
    """chains on a CPU, dense elsewhere."""
    CHAINS = "chains"
    """Each node's queries over the keys of its ancestors: only needed pairs."""
    DENSE = "dense"
    """One call with the whole mask."""
    FLEX = "flex"
    """FlexAttention over the blocks that are needed; has a gradient on CUDA only."""


class Parts(StrEnum):
    """What a tree that is cut into parts keeps while its other parts run."""

    KEEP = "keep"
    """Activations of the parts on the way from the root: each token runs forward once."""
    RECOMPUTE = "recompute"
    """Keys and values: each token runs forward twice, and the activations of one part exist."""


class Weights(StrEnum):
    """Where the trained weights are when torchrun starts several processes."""

    WHOLE = "whole"
    """All of them, their gradients and the optimizer's state in every process."""
    SHARDED = "sharded"
    """Each process has a part of them (FSDP2), beside the whole model that it samples from."""


@dataclass(frozen=True, kw_only=True, slots=True)
class UpdateConfig(Section):
    """How forward and backward passes of an update run."""

    activations: Activations = Activations.KEEP
    """What is kept for the backward pass."""
    autocast: Autocast = Autocast.OFF
    """Number format of matrix products."""
    attention: TreeAttention = TreeAttention.AUTO
    """How a packed tree is attended over."""
    max_tokens_per_part: int | None = None
    """Micro-batches with more unique tokens are cut into parts of at most so many, with the same
    gradient; absent: only trees above `max_tokens_per_microbatch`, into parts of that size."""
    parts: Parts = Parts.RECOMPUTE
    """What a tree that is cut keeps."""
    weights: Weights = Weights.WHOLE
    """Where the trained weights are under torchrun; one process has them all."""

    def _check(self) -> None:
        at_least("max_tokens_per_part", self.max_tokens_per_part, 1)
        if self.max_tokens_per_part is not None and self.activations is Activations.RECOMPUTE:
            raise InvalidConfigError(
                "max_tokens_per_part and activations = recompute do the same twice: leave "
                "activations at keep"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerConfig(Section):
    """AdamW and its learning rate."""

    learning_rate: float = 2.7e-5
    """Peak learning rate; 0 is a control that must not move the model."""
    weight_decay: float = 0.0
    """Decoupled weight decay."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's decay rates of the gradient's first and second moment."""
    eps: float = 1e-8
    """AdamW's stabiliser."""
    warmup_steps: int = 5
    """Rollout steps over which the learning rate rises in a straight line."""
    schedule: Schedule = Schedule.LINEAR
    """What the learning rate does after the warm-up."""
    final_fraction: float = 0.05
    """Fraction of the peak that a linear schedule ends at."""
    grad_clip: float = 1.0
    """Gradients are scaled down to this global norm at most."""

    def _check(self) -> None:
        at_least("learning_rate", self.learning_rate, 0)
        at_least("weight_decay", self.weight_decay, 0)
        at_least("warmup_steps", self.warmup_steps, 0)
        at_least("final_fraction", self.final_fraction, 0)
        at_most("final_fraction", self.final_fraction, 1)
        above("eps", self.eps, 0)
        above("grad_clip", self.grad_clip, 0)
        if not all(0 <= beta < 1 for beta in self.betas):
            raise InvalidConfigError(f"betas must lie in [0, 1), got {self.betas}")


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalConfig(Section):
    """Evaluation on held-out prompts, before and after the training and in between."""

    num_prompts: int = 200
    """Held-out prompts used, from the first; 0 turns evaluation off."""
    num_samples: int = 16
    """Completions a prompt at `temperature`, for mean accuracy and pass@k."""
    temperature: float = 1.0
    """Sampling temperature of the mean accuracy."""
    every: int = 0
    """Steps between evaluations during the run; 0: only before and after."""
    seed: int = 20_240
    """Seed of the evaluation; the same before and after."""

    def _check(self) -> None:
        at_least("num_prompts", self.num_prompts, 0)
        at_least("num_samples", self.num_samples, 1)
        at_most("num_samples", self.num_samples, _MAX_SAMPLES)
        at_least("temperature", self.temperature, _MIN_TEMPERATURE)
        at_least("every", self.every, 0)
        at_least("seed", self.seed, 0)
        at_most("seed", self.seed, MAX_SEED)
