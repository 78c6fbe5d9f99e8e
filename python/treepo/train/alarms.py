"""What a user should know about a step."""

from treepo.train.checkpoint import LoopState
from treepo.train.metrics import Metrics

NO_SIGNAL_STEPS = 5
"""Steps in a row without a signal after which the run says so."""


def alarms(state: LoopState, metrics: Metrics, first_error: str | None) -> list[str]:
    """Return what a user should know about a step, one line each.

    Args:
        state: State after the step.
        metrics: The step's metrics.
        first_error: An error of the reward function, None if there was none.

    Returns:
        Lines for steps without signal, missing rewards and a time limit that is too short; usually
        none.
    """
    lines: list[str] = []
    if state.steps_without_signal == NO_SIGNAL_STEPS:
        if metrics["accuracy"] > 0.9:
            reason = "solved: almost every completion is correct, take harder prompts"
        elif metrics["reward"] <= 0 and metrics["accuracy"] < 0.1:
            reason = (
                "collapsed or too hard: no completion is correct; resume from an earlier "
                "checkpoint with a lower optimizer.learning_rate, or take easier prompts"
            )
        else:
            reason = "raise search.width or sampling.temperature, or look at the reward function"
        lines.append(
            f"alarm: {NO_SIGNAL_STEPS} steps without a learning signal (in every tree the rewards "
            f"agree or are missing); {reason}"
        )
    missing = int(metrics["reward/timeouts"]), int(metrics["reward/errors"])
    if any(missing):
        detail = f", first error: {first_error}" if first_error else ""
        lines.append(
            f"warning: step {state.step}: no reward for {missing[0]} completions that ran out of "
            f"time and {missing[1]} that failed; their trees are not trained on{detail}"
        )
    if metrics["reward/slow_calls"] and not missing[0]:
        lines.append(
            f"warning: step {state.step}: the reward of all completions in one call ran out of "
            "time, in parts they did not: raise reward.timeout_s"
        )
    return lines
