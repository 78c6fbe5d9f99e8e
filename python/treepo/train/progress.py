"""Progress on a terminal: a bar with the latest numbers, or a line now and then in a log."""

import math
import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from tqdm import tqdm

from treepo.engine.stats import EngineStats

_LINES = 10
_SECONDS_BETWEEN_LINES = 30


class Progress:
    """Shows reward, accuracy, tokens a second and share ratio while a run goes on."""

    def __init__(self, num_steps: int, *, first_step: int, is_silent: bool = False) -> None:
        """Open the bar.

        Args:
            num_steps: Steps of the whole run.
            first_step: Steps that are done already.
            is_silent: Whether another process shows the run.
        """
        self._num_steps = num_steps
        self._is_warned = False
        self._every = max(1, num_steps // _LINES)
        self._bar: tqdm[Any] = tqdm(
            total=num_steps,
            initial=first_step,
            unit="step",
            file=sys.stderr,
            disable=is_silent or not sys.stderr.isatty(),
            dynamic_ncols=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.close()

    def show(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show the numbers of a finished step."""
        text = (
            f"reward {metrics['reward']:.3f}  accuracy {metrics['accuracy']:.3f}  "
            f"{metrics['perf/tok_per_s']:.0f} tokens/s  share {metrics['tree/share_ratio']:.2f}"
        )
        if math.isnan(metrics["reward"]) and not self._is_warned:
            self._is_warned = True
            tell(
                f"warning: step {step}: no completion got a reward, so nothing is learned; "
                "look at the reward function"
            )
        self._bar.set_postfix_str(text, refresh=False)
        self._bar.update()
        if self._bar.disable and (step % self._every == 0 or step == self._num_steps):
            tell(f"step {step}/{self._num_steps}  {text}")


class TreeProgress:
    """Shows how many trees of a long rollout are done: a bar, or a line now and then in a log."""

    def __init__(self, name: str) -> None:
        """Name the work; the bar opens with the first call of `show`."""
        self._name = name
        self._bar: tqdm[Any] | None = None
        self._shown = 0
        self._told = time.monotonic()

    def show(self, stats: EngineStats) -> None:
        """Show the state of the rollout; a callback of `Engine.rollout`."""
        if self._bar is not None and stats.finished_trees < self._shown:
            self.close()  # The next rollout of the same work.
        if self._bar is None:
            self._bar = tqdm(
                total=stats.num_trees,
                desc=self._name,
                unit="prompt",
                file=sys.stderr,
                disable=not sys.stderr.isatty(),
                dynamic_ncols=True,
                leave=False,
            )
        if self._bar.disable and time.monotonic() - self._told > _SECONDS_BETWEEN_LINES:
            self._told = time.monotonic()
            rate = f"{stats.decoded_tokens_per_s:.0f} tokens/s"
            tell(f"{self._name}: {stats.finished_trees}/{stats.num_trees} prompts, {rate}")
        self._bar.update(stats.finished_trees - self._shown)
        self._shown = stats.finished_trees

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()
        self._bar, self._shown = None, 0


def tell(text: str) -> None:
    """Print a line on stderr without disturbing a bar."""
    tqdm.write(text, file=sys.stderr)
