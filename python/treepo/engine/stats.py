"""What a rollout did: counts and times."""

from dataclasses import dataclass


@dataclass(kw_only=True, slots=True)
class EngineStats:
    """Counts of the latest rollout, brought up to date after every step.

    Attributes:
        steps: Forward passes.
        decoded_tokens: Tokens sampled.
        fed_tokens: Tokens run through the model.
        prefill_tokens: Fed tokens of rows that had more than one: prompts and recomputed paths.
        recomputed_tokens: Tokens whose keys and values were computed again after eviction or
            preemption.
        shared_prefix_tokens: Prompt tokens whose keys and values another tree had resident.
        preemptions: Paths taken off their row before they ended.
        evictions: Blocks of finished or preempted paths given to others.
        copies: Blocks copied because a fork left its parent inside one.
        prunes: Paths that were given up.
        row_steps: Rows of all steps, taken or not.
        idle_row_steps: Of these, rows that nobody was in.
        round_wait_row_steps: Of these, rows that a path could have had whose round had not ended.
        peak_blocks: The most blocks in use at once.
        finished_trees: Trees that are complete.
        num_trees: Trees asked for.
        seconds: Wall clock since the rollout began.
    """

    steps: int = 0
    decoded_tokens: int = 0
    fed_tokens: int = 0
    prefill_tokens: int = 0
    recomputed_tokens: int = 0
    shared_prefix_tokens: int = 0
    preemptions: int = 0
    evictions: int = 0
    copies: int = 0
    prunes: int = 0
    row_steps: int = 0
    idle_row_steps: int = 0
    round_wait_row_steps: int = 0
    peak_blocks: int = 0
    finished_trees: int = 0
    num_trees: int = 0
    seconds: float = 0.0

    @property
    def decoded_tokens_per_s(self) -> float:
        """Tokens sampled per second of wall clock."""
        return self.decoded_tokens / self.seconds if self.seconds > 0 else 0.0
