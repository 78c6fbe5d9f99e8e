"""The completion is the answer, character for character."""

from collections.abc import Sequence

from treepo.rewards.base import Completion, answer_text, completion_text


def exact_match(
    *,
    completions: Sequence[Completion],
    answer: Sequence[object],
    **columns: Sequence[object],  # noqa: ARG001 - reward functions are given every column
) -> list[float]:
    """Reward 1 for a completion that equals the answer, else 0.

    White space around either is ignored. For answers at the end of a longer text see
    `treepo.rewards.math`.

    Args:
        completions: Texts or message lists.
        answer: The right completions; anything that is not a text is compared by its `str`.
        columns: Unused.

    Returns:
        A reward for each completion.

    Raises:
        ValueError: An answer is missing.
    """
    return [
        float(completion_text(completion).strip() == answer_text(right).strip())
        for completion, right in zip(completions, answer, strict=True)
    ]
