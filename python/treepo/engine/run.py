"""The loop of one rollout: plan, copy, forward, sample, commit, judge."""

import time
from functools import partial
from typing import TYPE_CHECKING

from treepo import core
from treepo.config import SamplingParams
from treepo.engine.attention import NativeBackend, PagedContext
from treepo.engine.inputs import I32, InputBuilder, StepInputs
from treepo.engine.kv import KVPool
from treepo.engine.native_sampler import can_draw, draw
from treepo.engine.sampler import DrawnArrays, sample
from treepo.engine.verdicts import Judge, report_all

if TYPE_CHECKING:
    from treepo.engine.engine import Engine

_SCHEDULER_COUNTS = (
    "steps",
    "decoded_tokens",
    "fed_tokens",
    "recomputed_tokens",
    "shared_prefix_tokens",
    "preemptions",
    "evictions",
    "prunes",
    "row_steps",
    "idle_row_steps",
    "round_wait_row_steps",
)


class Run:
    """Steps of a rollout.

    Attributes:
        pool: The keys and values.
        finished: Trees that have finished in these steps, by index.
    """

    def __init__(
        self,
        engine: "Engine",
        scheduler: core.Scheduler,
        pool: KVPool,
        sampling: SamplingParams,
        judge: Judge | None = None,
        began: float | None = None,
    ) -> None:
        """Takes the parts.

        Args:
            engine: Its backend, policy and limits are used, and its `stats` written.
            scheduler: Plans the steps; no plan is open.
            pool: The keys and values.
            sampling: How tokens are drawn.
            judge: Asked about segments, if the search waits for verdicts.
            began: When the rollout began, by `time.perf_counter`; now if absent.
        """
        self._engine = engine
        self._scheduler = scheduler
        self.pool = pool
        self._sampling = sampling
        self._judge = judge
        self._began = time.perf_counter() if began is None else began
        self._buffers = core.PlanBuffers(scheduler)
        self._groups = core.GroupBuffers(scheduler)
        self._before = scheduler.stats()
        self.finished: list[int] = []
        self._inputs = InputBuilder(
            engine.backend.arrange,
            max_num_seqs=engine.config.max_num_seqs,
            max_model_len=engine.max_model_len,
            num_blocks=pool.num_blocks,
            block_size=pool.block_size,
            device=engine.model.device,
        )

    def _grouped(self, sizes: core.PlanSizes) -> tuple[I32 | None, I32 | None]:
        """Return the open plan's rows in order and the groups that share blocks, if asked for."""
        if not self._engine.backend.reads_groups:
            return None, None
        num_groups = self._groups.group(self._scheduler)
        return self._groups.row_order[: sizes.num_rows], self._groups.groups[:num_groups]

    def step(self) -> bool:
        """Run one step; False if nothing was left to do."""
        sizes = self._buffers.plan(self._scheduler)
        if sizes.num_rows == 0:
            return False
        inputs = self._inputs.build(self._buffers, sizes, *self._grouped(sizes))
        if sizes.num_copies:
            self.pool.copy_blocks(inputs.copies[0], inputs.copies[1])
        self._scheduler.commit_step(*self._compute(inputs))
        if self._judge is not None:
            # Before the next plan: while verdicts are pending, a plan may be empty too early.
            report_all(self._scheduler, self._judge)
        self._count(inputs)
        return True

    def _compute(self, inputs: StepInputs) -> DrawnArrays:
        """Run the forward pass and draw, by threads that stay awake where the kernels do all."""
        policy, backend = self._engine.policy, self._engine.backend
        context = PagedContext(self.pool, backend, inputs, policy.whole_layers)
        compute = partial(self._forward_and_draw, inputs, context)
        kernels = policy.kernels
        is_native = policy.is_all_kernels and backend.name == NativeBackend.name
        return kernels.awake(compute) if kernels is not None and is_native else compute()

    def _forward_and_draw(self, inputs: StepInputs, context: PagedContext) -> DrawnArrays:
        logits = self._engine.policy.logits(inputs, context)
        kernels = self._engine.policy.kernels
        if kernels is not None and can_draw(logits):
            return draw(kernels, logits, inputs.sample_rows, inputs.uniforms, self._sampling)
        if inputs.sample_rows is not None:
            logits = logits[inputs.sample_rows]
        return sample(logits, inputs.uniforms, self._sampling).arrays()

    def _count(self, inputs: StepInputs) -> None:
        counts = self._scheduler.stats()
        stats = self._engine.stats
        for name in _SCHEDULER_COUNTS:
            setattr(stats, name, counts[name] - self._before[name])
        stats.copies = counts["block_copies"] - self._before["block_copies"]
        stats.peak_blocks = counts["peak_blocks"]
        stats.prefill_tokens += inputs.num_prefill_tokens
        self.finished += self._scheduler.take_finished()
        stats.finished_trees = len(self.finished)
        stats.seconds = time.perf_counter() - self._began
