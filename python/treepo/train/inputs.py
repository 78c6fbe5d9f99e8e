"""What a run reads besides its config: prompts and reward functions, told apart by few numbers."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np

from treepo.errors import InvalidConfigError

Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class RunInputs:
    """Prompts and rewards of a run; a resumed run has to have the same.

    Attributes:
        num_prompts: Rows of the training data.
        digest: Of the first, middle and last prompt.
        rewards: Names of the reward functions.
    """

    num_prompts: int
    digest: str
    rewards: tuple[str, ...]

    @classmethod
    def of(cls, rows: Sequence[Row], rewards: Sequence[str]) -> Self:
        """Describe rows, at least one, and reward functions by their names."""
        count, found = len(rows), hashlib.sha256()
        for index in (0, count // 2, count - 1):
            prompt = rows[index].get("prompt")
            plain = prompt.tolist() if isinstance(prompt, np.ndarray) else prompt
            found.update(json.dumps(plain, sort_keys=True, default=str).encode())
        return cls(num_prompts=count, digest=found.hexdigest()[:16], rewards=tuple(rewards))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {**asdict(self), "rewards": list(self.rewards)}

    def require_same(self, before: Mapping[str, Any], run: object) -> None:
        """Refuse to continue a run with other inputs than it was started with.

        Args:
            before: What `to_dict` gave then.
            run: The run's folder, for the message.

        Raises:
            InvalidConfigError: They differ.
        """
        now = self.to_dict()
        if now == before:
            return
        if now["rewards"] != before.get("rewards"):
            other = f"rewards {before.get('rewards')}, not {now['rewards']}"
        elif now["num_prompts"] != before.get("num_prompts"):
            other = f"{before.get('num_prompts')} prompts, not {now['num_prompts']}"
        else:
            other = "other prompts"
        raise InvalidConfigError(
            f"{run} was started with {other}: continue it with what it was started with, from "
            "Python if rows or functions came from there (Trainer(..).train(resume=True)), or "
            "start a new run from its newest checkpoint"
        )
