"""Evaluations as tables for a terminal."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from treepo.evaluate import Evaluation


def counted(number: int, singular: str, plural: str | None = None) -> str:
    """Return a number with its noun: `1 tree`, `4 trees`, `2 trajectories`."""
    return f"{number} {singular if number == 1 else plural or singular + 's'}"


def before_after(before: "Evaluation", after: "Evaluation") -> str:
    """Return two evaluations as a table of what both measured; a fall of pass@k is said.

    Args:
        before: Evaluation of the first weights.
        after: Evaluation of the last weights.

    Returns:
        Lines of text.
    """
    k = max(set(before.pass_at) & set(after.pass_at))  # Both have pass@1.
    low_rows, high_rows = _rows(before, k), _rows(after, k)
    names = [name for name in low_rows if name in high_rows]
    rows = [(name, low_rows[name], high_rows[name]) for name in names]
    width = max(len(name) for name in names)
    title = f"held-out, {counted(after.num_prompts, 'prompt')}"
    lines = [f"{title:{max(width, len(title))}}  before   after  change"]
    pad = max(width, len(title))
    lines += [
        f"{name:{pad}}  {100 * low:5.1f}%  {100 * high:5.1f}%  {100 * (high - low):+6.1f}"
        for name, low, high in rows
    ]
    if after.pass_at[k] < before.pass_at[k]:
        lines.append(
            f"pass@{k} fell from {100 * before.pass_at[k]:.1f}% to {100 * after.pass_at[k]:.1f}%: "
            f"{k} attempts solve fewer of the prompts than before"
        )
    if before.mean_reward != before.accuracy or after.mean_reward != after.accuracy:
        change = after.mean_reward - before.mean_reward
        lines.append(
            f"{'mean reward':{pad}}  {before.mean_reward:6.3g}  {after.mean_reward:6.3g}  "
            f"{change:+6.3g}"
        )
    lines += _differences(before, after)
    for name, evaluation in (("before", before), ("after", after)):
        lines += [f"{name}: {line}" for line in _unscored(evaluation)]
    return "\n".join(lines)


def single(evaluation: "Evaluation") -> str:
    """Return one evaluation as a table."""
    rows = _rows(evaluation, max(evaluation.pass_at))
    width = max(len(name) for name in rows)
    lines = [f"{counted(evaluation.num_prompts, 'prompt')}, {evaluation.seconds:.0f} s"]
    lines += [f"{name:{width}}  {100 * value:5.1f}%" for name, value in rows.items()]
    lines.append(f"{'mean reward':{width}}  {evaluation.mean_reward:6.4g}")
    if evaluation.clipped_ratio:
        lines.append(
            f"{100 * evaluation.clipped_ratio:.1f}% of the sampled completions did not end by "
            "themselves; search.max_depth and search.segment_len make them longer"
        )
    return "\n".join(lines + _unscored(evaluation))


def _differences(before: "Evaluation", after: "Evaluation") -> list[str]:
    """Say what was evaluated differently, as a resumed run may ask for."""
    return [
        f"evaluated differently: {name} was {getattr(before, name)}, is {getattr(after, name)}"
        for name in ("num_prompts", "num_samples", "temperature")
        if getattr(before, name) != getattr(after, name)
    ]


def _rows(evaluation: "Evaluation", k: int) -> dict[str, float]:
    return {
        f"accuracy, temperature {evaluation.temperature:g}": evaluation.accuracy,
        "accuracy, greedy": evaluation.greedy_accuracy,
        f"pass@{k}": evaluation.pass_at[k],
    }


def _unscored(evaluation: "Evaluation") -> list[str]:
    if not evaluation.num_unscored:
        return []
    completions = counted(evaluation.num_unscored, "completion")
    verb = "counts" if evaluation.num_unscored == 1 else "count"
    return [f"{completions} got no reward and {verb} as not correct"]
