"""From a finished forest to one reward a trajectory."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from treepo.config import RewardConfig
from treepo.errors import RewardError
from treepo.forest import Forest
from treepo.prompts import is_messages
from treepo.rewards import RewardResult, RewardRunner

F32 = npt.NDArray[np.float32]
RewardSource = str | Callable[..., object]


@dataclass(frozen=True, kw_only=True, slots=True)
class Scores:
    """Rewards of a forest's trajectories.

    Attributes:
        values: Sum over the reward functions, f32[P]. A function that returned None is left out of
            it; NaN where all did, or where one failed or ran out of time.
        by_function: Values of each function by its name, f32[P] each.
        num_timeouts: Calls that ran out of time, for one completion each.
        num_errors: Calls that failed, for one completion each.
        num_slow_calls: Calls for several completions that ran out of time and were made in parts.
        first_error: One of those errors, None if there was none.
    """

    values: F32
    by_function: Mapping[str, F32]
    num_timeouts: int
    num_errors: int
    num_slow_calls: int
    first_error: str | None

    @classmethod
    def joined(cls, parts: Sequence[Self], order: npt.NDArray[np.int64]) -> Self:
        """Return the scores of several forests as of one forest.

        Args:
            parts: Scores of each.
            order: Where the trajectories of the one forest are in those of the parts, i64[P].
        """
        by_function = {
            name: np.concatenate([part.by_function[name] for part in parts])[order]
            for name in parts[0].by_function
        }
        return cls(
            values=np.concatenate([part.values for part in parts])[order],
            by_function=by_function,
            num_timeouts=sum(part.num_timeouts for part in parts),
            num_errors=sum(part.num_errors for part in parts),
            num_slow_calls=sum(part.num_slow_calls for part in parts),
            first_error=next((part.first_error for part in parts if part.first_error), None),
        )


def require_some(scores: Sequence[Scores]) -> None:
    """Refuse to go on where a reward function fails on everything that it was given.

    Args:
        scores: Those of all batches that belong together, such as those of a training step.

    Raises:
        RewardError: No completion has a reward, and functions failed or ran out of time.
    """
    count = sum(len(x.values) for x in scores)
    num_failed = sum(x.num_errors + x.num_timeouts for x in scores)
    if count and num_failed and not any(np.isfinite(x.values).any() for x in scores):
        errors = [x.first_error for x in scores if x.first_error]
        reason = errors[0] if errors else "the time limit reward.timeout_s ran out"
        raise RewardError(f"the reward failed on all {count} completions: {reason}")


class Scorer:
    """Reward functions, their worker processes and the tokenizer that makes texts for them."""

    def __init__(
        self,
        rewards: RewardSource | Sequence[RewardSource],
        config: RewardConfig,
        tokenizer: Any,
        eos_token_ids: Sequence[int],
    ) -> None:
        """Find the functions; their processes start at the first call.

        Args:
            rewards: One reward function or name, or several; their values are added.
            config: Time limit and number of workers.
            tokenizer: Turns completions into text.
            eos_token_ids: Tokens that end a completion; not part of its text.

        Raises:
            RewardError: A function cannot be found, or there is none.
        """
        listed = [rewards] if isinstance(rewards, str) or callable(rewards) else list(rewards)
        if not listed:
            raise RewardError("there is no reward function; give at least one")
        self._runners = {
            _name(reward): RewardRunner(reward, config.timeout_s, config.num_workers)
            for reward in listed
        }
        if len(self._runners) < len(listed):
            raise RewardError(f"two reward functions share a name: {[_name(x) for x in listed]}")
        self._tokenizer = tokenizer
        self._eos = frozenset(eos_token_ids)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the reward functions, in order."""
        return tuple(self._runners)

    def check_columns(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Check that the functions can take the columns of rows, if there are rows.

        Raises:
            RewardError: A function cannot, or a column has a reserved name.
        """
        if rows:
            for runner in self._runners.values():
                runner.check_columns(_columns(rows))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the worker processes."""
        for runner in self._runners.values():
            runner.close()

    def score(
        self,
        forest: Forest,
        rows: Sequence[Mapping[str, Any]],
        *,
        trees_at_once: int | None = None,
    ) -> Scores:
        """Score every trajectory.

        Args:
            forest: A finished rollout; tree i answers row i.
            rows: Rows of the data set: `prompt` and any columns.
            trees_at_once: Trees whose trajectories a function gets in one batch; absent: all. What
                hangs costs the others of its batch.

        Returns:
            The rewards.

        Raises:
            RewardError: A function breaks its contract. Where it fails, the reward is missing; see
                `require_some`.
        """
        tree = np.asarray(forest.paths.tree)
        own_rows = [rows[int(index)] for index in tree]
        prompts = [row["prompt"] for row in own_rows]
        ids = [forest.completion_ids(path).tolist() for path in range(forest.num_paths)]
        completions = [
            self._completion(token_ids, prompt)
            for token_ids, prompt in zip(ids, prompts, strict=True)
        ]
        columns = {name: [row.get(name) for row in own_rows] for name in _columns(rows)}
        batches = _batches(forest, trees_at_once)

        def run(runner: RewardRunner) -> RewardResult:
            return RewardResult.joined(
                [
                    runner.score(
                        prompts[part],
                        completions[part],
                        ids[part],
                        {name: column[part] for name, column in columns.items()},
                    )
                    for part in batches
                ]
            )

        return _combine({name: run(runner) for name, runner in self._runners.items()})

    def _completion(self, token_ids: list[int], prompt: Any) -> Any:
        ended = bool(token_ids) and token_ids[-1] in self._eos
        text = self._tokenizer.decode(
            token_ids[:-1] if ended else token_ids,
            skip_special_tokens=True,
            clean_up_tokenization_spaces=False,
        )
        return [{"role": "assistant", "content": text}] if is_messages(prompt) else text


def _columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the columns that any row has besides its prompt, in order."""
    return list(dict.fromkeys(name for row in rows for name in row if name != "prompt"))


def _batches(forest: Forest, trees_at_once: int | None) -> list[slice]:
    """Return the paths of neighbouring trees, so many trees each."""
    starts = np.asarray(forest.trees.path_start).tolist()
    firsts = starts[: -1 : trees_at_once or len(starts)] or [0]
    return [slice(*ends) for ends in pairwise([*firsts, starts[-1]])]


def _combine(results: Mapping[str, RewardResult]) -> Scores:
    by_function = {name: result.values for name, result in results.items()}
    stacked = np.stack(list(by_function.values()))
    is_failed = np.stack([result.is_failed for result in results.values()])
    known = np.isfinite(stacked).any(axis=0) & ~is_failed.any(axis=0)
    values = np.where(known, np.nansum(stacked, axis=0), math.nan).astype(np.float32)
    errors = [result.first_error for result in results.values() if result.first_error]
    return Scores(
        values=values,
        by_function=by_function,
        num_timeouts=sum(result.num_timeouts for result in results.values()),
        num_errors=sum(result.num_errors for result in results.values()),
        num_slow_calls=sum(result.num_slow_calls for result in results.values()),
        first_error=errors[0] if errors else None,
    )


def _name(reward: RewardSource) -> str:
    if isinstance(reward, str):
        return reward.rpartition(":")[2]
    return str(getattr(reward, "__name__", type(reward).__name__))
