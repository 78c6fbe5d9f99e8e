"""A step of decode rows through the Python binding: plan and commit, in one process.

Sixteen trees whose paths share their prompt; the trees differ in length, so that as many rows need
a new block in one step as in another. Prefill and the first steps are not timed. The garbage
collector is off while steps are timed.

    python benches/plan_commit.py
"""

import argparse
import gc
import statistics
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

import environment
from treepo.config import SearchConfig
from treepo.core import PlanBuffers, PlanSizes, Scheduler

BLOCK_SIZE = 16
NUM_TREES = 16
NUM_WARM_UP = 32
STEPS_OF_A_ROUND = 64
STEP_TOKENS = 65_536
MAX_TOKENS = 1_024  # paths that find a row early decode while others wait for theirs


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Decode rows with about this many blocks each, and the bar in microseconds."""

    num_rows: int
    num_blocks: int
    bar_us: float

    @property
    def name(self) -> str:
        """Rows and blocks."""
        return f"{self.num_rows} rows, {self.num_blocks} blocks"


CASES = (
    Case(num_rows=256, num_blocks=12, bar_us=100),
    Case(num_rows=256, num_blocks=6_250, bar_us=100),
    Case(num_rows=4_096, num_blocks=12, bar_us=1_500),
    Case(num_rows=4_096, num_blocks=6_250, bar_us=1_500),
)


class Rows:
    """A scheduler whose rows all decode, with its plan arrays."""

    def __init__(self, case: Case) -> None:
        prompt_len = case.num_blocks * BLOCK_SIZE - NUM_WARM_UP - STEPS_OF_A_ROUND // 2
        own_blocks = MAX_TOKENS // BLOCK_SIZE + 2
        search = SearchConfig.flat(case.num_rows // NUM_TREES, MAX_TOKENS)
        self.scheduler = Scheduler(
            search.to_core((), prompt_len + MAX_TOKENS),
            num_blocks=NUM_TREES * case.num_blocks + case.num_rows * own_blocks + 1,
            block_size=BLOCK_SIZE,
            max_num_seqs=case.num_rows,
            max_num_batched_tokens=STEP_TOKENS,
        )
        for tree in range(NUM_TREES):
            prompt = np.arange(prompt_len - tree, dtype=np.uint32)
            prompt[0] = prompt_len + tree  # no prompt shares a block with another one's
            self.scheduler.add_tree(tree, prompt)
        self.buffers = PlanBuffers(self.scheduler)
        self.num_rows = case.num_rows
        self.ids = np.full(case.num_rows, 9, dtype=np.uint32)
        self.logprobs = np.full(case.num_rows, -0.5, dtype=np.float32)
        self.entropies = np.full(case.num_rows, 0.7, dtype=np.float32)
        self._settle()

    def step(self) -> PlanSizes:
        """A step of any rows."""
        sizes = self.buffers.plan(self.scheduler)
        n = sizes.num_samples
        self.scheduler.commit_step(self.ids[:n], self.logprobs[:n], self.entropies[:n])
        return sizes

    def timed_step(self) -> tuple[int, int]:
        """Nanoseconds of plan and commit when every row decodes."""
        began = time.perf_counter_ns()
        sizes = self.buffers.plan(self.scheduler)
        planned = time.perf_counter_ns()
        self.scheduler.commit_step(self.ids, self.logprobs, self.entropies)
        ended = time.perf_counter_ns()
        assert sizes.num_tokens == self.num_rows, sizes
        return planned - began, ended - planned

    def _settle(self) -> None:
        """Steps until every row decodes and has its block table, then warms up."""
        sizes = self.step()
        while sizes.num_tokens != self.num_rows or sizes.num_table_updates > self.num_rows:
            sizes = self.step()
        for _ in range(NUM_WARM_UP):
            self.step()


def measure(case: Case) -> list[tuple[int, int]]:
    """One round: plan and commit times of its steps."""
    rows = Rows(case)
    gc.collect()
    gc.disable()
    times = [rows.timed_step() for _ in range(STEPS_OF_A_ROUND)]
    gc.enable()
    return times


def summarise(case: Case, rounds: list[list[tuple[int, int]]]) -> dict[str, Any]:
    """Medians over all steps, in microseconds."""
    steps = [step for timed in rounds for step in timed]
    totals = [(plan + commit) / 1e3 for plan, commit in steps]
    median = statistics.median(totals)
    return {
        "median_us": median,
        "plan_us": statistics.median(plan for plan, _ in steps) / 1e3,
        "commit_us": statistics.median(commit for _, commit in steps) / 1e3,
        "mean_us": statistics.mean(totals),
        "p90_us": statistics.quantiles(totals, n=10)[-1],
        "rounds_us": [statistics.median(map(sum, timed)) / 1e3 for timed in rounds],
        "num_steps": len(steps),
        "bar_us": case.bar_us,
        "holds": median <= case.bar_us,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=4, help="64 steps of each case a round")
    options = parser.parse_args()
    rounds: dict[Case, list[list[tuple[int, int]]]] = {case: [] for case in CASES}
    for _ in range(options.rounds):
        for case, timed in rounds.items():
            timed.append(measure(case))
    figures = {case.name: summarise(case, timed) for case, timed in rounds.items()}
    for name, figure in figures.items():
        print(
            f"{name:24} {figure['median_us']:9.1f} us (plan {figure['plan_us']:.1f}, commit "
            f"{figure['commit_us']:.1f}, p90 {figure['p90_us']:.1f}), bar {figure['bar_us']:.0f}: "
            f"{'holds' if figure['holds'] else 'MISSED'}"
        )
    result = {"gc": "disabled while steps are timed", "options": vars(options), "cases": figures}
    print(environment.write("plan_commit", result))


if __name__ == "__main__":
    main()
