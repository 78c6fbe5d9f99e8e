"""One validated config tree for Python, YAML files and the command line."""

from treepo.config.run import TrainConfig
from treepo.config.sections import (
    AdvantageConfig,
    DataConfig,
    Dtype,
    EngineConfig,
    EvalConfig,
    Fallback,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    RewardConfig,
    SamplingParams,
    Schedule,
    SearchConfig,
)

__all__ = [
    "AdvantageConfig",
    "DataConfig",
    "Dtype",
    "EngineConfig",
    "EvalConfig",
    "Fallback",
    "LossConfig",
    "ModelConfig",
    "OptimizerConfig",
    "RewardConfig",
    "SamplingParams",
    "Schedule",
    "SearchConfig",
    "TrainConfig",
]
