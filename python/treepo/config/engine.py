"""The section of the sampling engine."""

from dataclasses import dataclass
from enum import StrEnum

from treepo.config.schema import Section, above, check_counts


class Dtype(StrEnum):
    """Number format of weights and KV cache."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


class Attention(StrEnum):
    """An attention back end."""

    AUTO = "auto"
    """The kernels on a CPU in float32 and bfloat16, torch elsewhere."""
    NATIVE = "native"
    """The CPU kernels of treepo."""
    TORCH = "torch"
    """Gather and torch's attention: right on every device."""


class Packing(StrEnum):
    """Whether linear layers have packed copies of their weights."""

    AUTO = "auto"
    """Where that is faster and computes the same; takes the memory of the weights again."""
    NEVER = "never"
    """The model's own layers compute."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineConfig(Section):
    """Device, memory and batch limits of the sampling engine."""

    device: str = "cpu"
    """Torch device of model and KV cache, for instance cpu or cuda:0."""
    dtype: Dtype = Dtype.FLOAT32
    """Number format of the weights."""
    rollout_dtype: Dtype | None = None
    """Number format of the weights that tokens are sampled with: a copy that follows the trained
    ones. Absent: the trained weights themselves."""
    kv_dtype: Dtype | None = None
    """Number format of the KV cache; absent: that of the weights that sample."""
    attention: Attention = Attention.AUTO
    """Which attention back end samples."""
    packing: Packing = Packing.AUTO
    """Whether linear layers are computed from packed copies of their weights (on a CPU)."""
    block_size: int = 16
    """Tokens a KV block holds."""
    kv_cache_gib: float | None = None
    """Memory of the KV pool in GiB; absent: the engine chooses."""
    num_blocks: int | None = None
    """Blocks of the KV pool; wins over `kv_cache_gib`."""
    max_num_seqs: int = 256
    """Rows of one step at most."""
    max_num_batched_tokens: int = 2048
    """Tokens of one step at most."""
    admission_percent: int = 200
    """Trees are admitted until the worst growth of all open ones fills this much of the pool; 100
    preempts only where one tree alone outgrows the pool, and leaves memory idle."""
    age_bias: int = 32
    """Sampled tokens that being one place older is worth to a tree whose paths wait for a row; 0
    is fair to all, a large number finishes old trees first."""
    max_model_len: int | None = None
    """Tokens a path holds at most, prompt included; absent: the model's own limit."""

    @property
    def pool_dtype(self) -> Dtype:
        """Number format of the KV cache."""
        return self.kv_dtype or self.rollout_dtype or self.dtype

    def _check(self) -> None:
        above("kv_cache_gib", self.kv_cache_gib, 0)
        check_counts(self, {"num_blocks": 2, "max_model_len": 2, "age_bias": 0})
