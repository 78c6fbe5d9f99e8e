"""The whole config of a training run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from treepo.config.engine import EngineConfig
from treepo.config.growth import TemperatureSchedule
from treepo.config.loss import LossConfig, Ratio
from treepo.config.overrides import nested
from treepo.config.schema import MAX_SEED, Section, at_least, at_most, layered
from treepo.config.search import SearchConfig, Verdicts
from treepo.config.sections import (
    Activations,
    AdvantageConfig,
    DataConfig,
    EvalConfig,
    LoraConfig,
    ModelConfig,
    OptimizerConfig,
    Parts,
    RewardConfig,
    SamplingParams,
    UpdateConfig,
    Weights,
)
from treepo.config.text import dump_yaml, load_yaml
from treepo.errors import InvalidConfigError

CONFIG_FILE = "config.yaml"
"""File in a run's folder that holds the config of the run."""


def _embedded_search() -> SearchConfig:
    return SearchConfig(width=8, segment_len=9, max_depth=7)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig(Section):
    """Everything that a training run depends on.

    The defaults train the embedded model on the embedded task. `TrainConfig.for_model` has the
    defaults for any other model; files and command lines that name a model start from those.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    """Which model is trained."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    """Adapters that are trained instead of the model."""
    data: DataConfig = field(default_factory=DataConfig)
    """Which prompts are used."""
    engine: EngineConfig = field(default_factory=EngineConfig)
    """Device, memory and batch limits of the sampling engine."""
    search: SearchConfig = field(default_factory=_embedded_search)
    """How a tree grows and where it ends."""
    sampling: SamplingParams = field(default_factory=SamplingParams)
    """How tokens are drawn in rollouts; the loss divides logits by the same temperature."""
    reward: RewardConfig = field(default_factory=RewardConfig)
    """How completions are scored."""
    advantage: AdvantageConfig = field(default_factory=AdvantageConfig)
    """How rewards become advantages."""
    loss: LossConfig = field(default_factory=LossConfig)
    """The policy loss."""
    update: UpdateConfig = field(default_factory=UpdateConfig)
    """How forward and backward passes run."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """AdamW and its learning rate."""
    eval: EvalConfig = field(default_factory=EvalConfig)
    """Evaluation on held-out prompts."""
    num_steps: int = 100
    """Rollout steps of the run; the learning-rate schedule spans them."""
    max_sampled_tokens: int | None = None
    """Sampled tokens after which the run ends before its `num_steps`; the schedule follows what is
    nearer its end. Searches are compared at equal cost this way."""
    prompts_per_step: int = 16
    """Trees with a learning signal that one step trains on, at most."""
    minibatches_per_step: int = 2
    """Optimizer steps of a rollout step with all its trees; one with fewer trees makes fewer."""
    epochs_per_step: int = 1
    """Times that a rollout step's trees are trained on, all minibatches in each."""
    max_tokens_per_microbatch: int = 4096
    """Unique tokens of one forward and backward pass at most; a larger tree is cut into parts of so
    many, see `update.max_tokens_per_part`."""
    max_sampling_batches: int = 1
    """Batches of prompts that a step samples at most to replace trees whose rewards all agree;
    1 drops them without replacement."""
    max_unfinished_trees: int = 0
    """Trees that may be unfinished when a step ends; so many more are sampled at once, a step takes
    those that are done first (all of them: it may have so many more than `prompts_per_step`), and
    the others go on under the next weights."""
    seed: int = 0
    """Seed of prompt order and sampling."""
    num_threads: int | None = None
    """CPU threads of torch in this process; absent: torch's own choice."""
    output_dir: str | None = None
    """Folder of the run; absent: runs/ and the time of the start."""
    save_every: int = 20
    """Steps between checkpoints; 0: only at the end and on interruption."""
    keep_checkpoints: int = 2
    """Newest checkpoints kept."""
    save_forests_every: int = 0
    """Steps between saved forests; 0: never."""

    def _check(self) -> None:
        at_least("num_steps", self.num_steps, 1)
        at_least("max_sampled_tokens", self.max_sampled_tokens, 1)
        at_least("prompts_per_step", self.prompts_per_step, 1)
        at_least("minibatches_per_step", self.minibatches_per_step, 1)
        at_least("epochs_per_step", self.epochs_per_step, 1)
        at_least("max_tokens_per_microbatch", self.max_tokens_per_microbatch, 1)
        at_least("max_sampling_batches", self.max_sampling_batches, 1)
        at_least("max_unfinished_trees", self.max_unfinished_trees, 0)
        schedule = self.search.branch.schedule
        if self.max_unfinished_trees and schedule is not TemperatureSchedule.CONSTANT:
            raise InvalidConfigError(
                f"max_unfinished_trees = {self.max_unfinished_trees} and search.branch.schedule = "
                f"{schedule.value}: a tree that outlives a step has one temperature, set constant"
            )
        at_least("seed", self.seed, 0)
        at_most("seed", self.seed, MAX_SEED)
        at_least("num_threads", self.num_threads, 1)
        at_most("num_threads", self.num_threads, 1024)
        at_least("save_every", self.save_every, 0)
        at_least("keep_checkpoints", self.keep_checkpoints, 1)
        at_least("save_forests_every", self.save_forests_every, 0)

        at_most("reward.overlong_buffer", self.reward.overlong_buffer, self.search.completion_len)
        at_most(
            "update.max_tokens_per_part",
            self.update.max_tokens_per_part or 1,
            self.max_tokens_per_microbatch,
        )
        needs_all = self.loss.ratio is Ratio.TRAJECTORY
        if needs_all and self.update.max_tokens_per_part and self.update.parts is Parts.KEEP:
            raise InvalidConfigError(
                "loss.ratio = trajectory needs all tokens of a trajectory at once: set "
                "update.parts = recompute"
            )

    @property
    def cutting_update(self) -> UpdateConfig:
        """`update`, with trees above `max_tokens_per_microbatch` cut where nothing speaks against.

        What does: parts of another size, and settings that exclude parts.
        """
        update = self.update
        excludes_parts = (
            update.activations is Activations.RECOMPUTE
            or update.weights is Weights.SHARDED
            or (self.loss.ratio is Ratio.TRAJECTORY and update.parts is Parts.KEEP)
        )
        if excludes_parts or update.max_tokens_per_part is not None:
            return update
        return update.replace(max_tokens_per_part=self.max_tokens_per_microbatch)

    @property
    def needs_first_weights(self) -> bool:
        """Whether a resumed run starts from the weights that training began with.

        Adapters are put on them, and a divergence is measured from them.
        """
        has_no_other = self.loss.kl_weight > 0 and self.model.reference is None
        return self.lora.rank > 0 or has_no_other

    def require_trainable(self) -> None:
        """Check what only training needs: answers to compare, from the whole distribution.

        Raises:
            InvalidConfigError: A tree has one answer, sampling is greedy or truncated by top-k or
                top-p, or the search waits for verdicts.
        """
        if self.search.width < 2:
            raise InvalidConfigError(
                f"search.width must be at least 2 to train, got {self.search.width}: an answer is "
                "compared with others of its tree"
            )
        if self.sampling.temperature <= 0:
            value = self.sampling.temperature
            raise InvalidConfigError(f"sampling.temperature must be above 0 to train, got {value}")
        truncation = (self.sampling.top_k, self.sampling.top_p, self.sampling.min_p)
        if truncation != (0, 1, 0):
            raise InvalidConfigError(
                "sampling.top_k, sampling.top_p and sampling.min_p must be off (0, 1 and 0) to "
                "train: the loss needs the whole distribution, got "
                f"{', '.join(str(value) for value in truncation)}"
            )
        if self.search.verdicts is not Verdicts.NOTHING:
            raise InvalidConfigError(
                "search.verdicts must be nothing to train: only Engine.rollout takes a judge"
            )

    @classmethod
    def for_model(cls, path: str | None) -> Self:
        """Return the defaults for a model: small and careful ones unless it is the embedded one.

        Args:
            path: Folder of a Hugging Face causal LM; None is the embedded model.

        Returns:
            A config with `model.path` set.
        """
        if path is None:
            return cls()
        return cls(
            model=ModelConfig(path=path),
            search=SearchConfig(),
            optimizer=OptimizerConfig(learning_rate=1e-6),
            prompts_per_step=8,
            num_steps=100,
            max_sampling_batches=3,
        )

    @classmethod
    def load(
        cls,
        *,
        data: Mapping[str, Any] | None = None,
        overrides: Sequence[str] = (),
    ) -> Self:
        """Build a config from nested dictionaries and dotted overrides, the latter winning.

        Args:
            data: What a YAML file holds; None for nothing.
            overrides: Texts like `search.width=16` or `--search.width`, `16`.

        Returns:
            The config; keys that neither names come from `for_model` of the model they name.

        Raises:
            InvalidConfigError: Unknown key or bad value.
        """
        low, high = dict(data or {}), nested(cls, overrides)
        base = cls.for_model(_model_path(high, low))
        return cls.from_dict(layered(cls, low, high), base=base)

    @classmethod
    def from_yaml(cls, file: str | Path, overrides: Sequence[str] = ()) -> Self:
        """Read a YAML file, then apply dotted overrides; see `load`.

        Raises:
            InvalidConfigError: The file cannot be read, or a key or value is wrong.
        """
        data = load_yaml(Path(file))
        try:
            return cls.load(data=data, overrides=overrides)
        except InvalidConfigError as error:
            is_files_own = str(error) == cls._refusal(data)
            raise InvalidConfigError(f"{file}: {error}" if is_files_own else str(error)) from None

    @classmethod
    def _refusal(cls, data: Mapping[str, Any]) -> str | None:
        """Return why a file alone is no config; None if it is one."""
        try:
            cls.load(data=data)
        except InvalidConfigError as error:
            return str(error)
        return None

    def to_yaml(self) -> str:
        """Return the whole config as YAML; `from_yaml` of it gives back an equal config."""
        return dump_yaml(self.to_dict())


def _model_path(*layers: Mapping[str, Any]) -> str | None:
    """Return the model's path of the first layer that names one."""
    for layer in layers:
        model = layer.get("model")
        if isinstance(model, Mapping) and "path" in model:
            return model["path"] if isinstance(model["path"], str) else None
    return None
