"""The training loop: sample trees, score them, update the weights, again."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from treepo.advantages import credit, find_preset
from treepo.config import TrainConfig, Weights
from treepo.engine import Engine
from treepo.engine.load import load_model
from treepo.engine.stats import EngineStats
from treepo.errors import (
    DataError,
    InvalidConfigError,
    InvalidInputError,
    PoolTooSmallError,
    PromptTooLongError,
    RewardError,
)
from treepo.evaluate import Evaluation, evaluate, first_rows
from treepo.forest import Forest
from treepo.scoring import RewardSource, Scorer
from treepo.train import checkpoint, optimizer
from treepo.train.adapters import Adapters
from treepo.train.alarms import alarms
from treepo.train.check import first_step_check
from treepo.train.checkpoint import LoopState
from treepo.train.collect import Batch, Collector
from treepo.train.dataset import PromptSource
from treepo.train.group import check_processes, group_of_environment
from treepo.train.inputs import RunInputs
from treepo.train.interrupt import Interruption, StepAbandonedError, TrainingInterrupted
from treepo.train.metrics import Metrics
from treepo.train.progress import Progress, TreeProgress, tell
from treepo.train.reference import Reference
from treepo.train.requirements import (
    NUM_ROWS_FOR_COLUMNS,
    check_attention,
    check_parts,
    check_prompts,
    check_weights,
    say_what_will_disappoint,
)
from treepo.train.run_folder import RunFolder, SilentRunFolder
from treepo.train.step import TrainStep
from treepo.train.update import Update

if TYPE_CHECKING:
    from treepo.train.sharded import ShardedModel

Row = Mapping[str, Any]
OnTrainStep = Callable[[int, Mapping[str, float]], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainResult:
    """What a finished run leaves.

    Attributes:
        run_dir: Folder of the run.
        before: Evaluation of the first weights, None without evaluation data.
        after: Evaluation of the last weights, None without evaluation data.
        num_steps: Steps of the run.
        num_tokens: Tokens sampled in training.
        seconds: Wall clock of this process's part of the run.
    """

    run_dir: Path
    before: Evaluation | None
    after: Evaluation | None
    num_steps: int
    num_tokens: int
    seconds: float


class Trainer:
    """Trains a causal LM on trees of its own answers.

    The model is trained in place. Two runs with the same data, config and thread count are
    equal, and so are an interrupted run that is resumed and one that is not.

    Attributes:
        config: The config.
        engine: Samples from the model.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        reward_funcs: RewardSource | Sequence[RewardSource],
        train_dataset: Sequence[Row],
        eval_dataset: Sequence[Row] | None = None,
        config: TrainConfig | None = None,
    ) -> None:
        """Check that the parts fit; nothing is written yet.

        Args:
            model: A transformers causal LM on its device.
            tokenizer: Its tokenizer.
            reward_funcs: One reward function or name, or several whose values are added.
            train_dataset: Rows with `prompt` and any columns for the reward functions.
            eval_dataset: Held-out rows of the same kind; None for no evaluation.
            config: The config; the defaults are those of the embedded task.

        Raises:
            TreepoError: A part cannot be used; the message says which and why.
        """
        self.config = config or TrainConfig()
        self.config.require_trainable()
        if self.config.num_threads is not None:
            torch.set_num_threads(self.config.num_threads)
        find_preset(self.config.advantage.preset)
        check_parts(model, tokenizer, train_dataset, eval_dataset)
        check_weights(model)
        check_attention(self.config, model.device)
        self._group = group_of_environment(model.device)
        check_processes(self.config, self._group.size)
        self._adapters = self._add_adapters(model)
        self.engine = Engine(model, tokenizer, self.config.engine)
        self._model = model
        self._tokenizer = tokenizer
        self._scorer = Scorer(
            reward_funcs, self.config.reward, tokenizer, self.engine.eos_token_ids
        )
        self._source = PromptSource(train_dataset, self.config.seed)
        self._eval_rows = first_rows(eval_dataset, self.config.eval.num_prompts)
        check_prompts(self._source, self._eval_rows, self.engine, self.config)
        self._scorer.check_columns([*first_rows(train_dataset, NUM_ROWS_FOR_COLUMNS)])
        self._scorer.check_columns(self._eval_rows)
        self._inputs = RunInputs.of(train_dataset, self._scorer.names)
        temperature = self.config.sampling.temperature
        step = TrainStep(
            model,
            self.config.loss,
            temperature,
            update=self.config.cutting_update,
            exact=self.engine.exact_forward,
        )
        self._shards = self._split(step)
        self._trained = model if self._shards is None else self._shards.model
        self._optimizer = optimizer.build(self._trained, self.config.optimizer)
        self._update = Update(
            step, self._optimizer, self.config, self._reference(), self._group, self._shards
        )
        self._state = LoopState()
        self._collector: Collector | None = None
        self._open_trees: bytes | None = None
        self._stop = Interruption()
        self._on_step: OnTrainStep | None = None

    @property
    def is_first(self) -> bool:
        """Whether this process writes the run's files; of several, one does."""
        return self._group.is_first

    def train(self, *, resume: bool = False, on_step: OnTrainStep | None = None) -> TrainResult:
        """Run all steps.

        Args:
            resume: Continue the run in `config.output_dir` from its newest complete checkpoint;
                with adapters or `loss.kl_weight` the model is the one that training began with.
            on_step: Called with the number of each finished step and its metrics, as in
                `metrics.jsonl`; by the first of several processes.

        Returns:
            The evaluations before and after, and where the run is.

        Raises:
            TrainingInterrupted: Ctrl-C or SIGTERM; a checkpoint was written.
            TreepoError: The run cannot go on; earlier checkpoints stay usable.
        """
        began = time.perf_counter()
        folder = self._open(is_resumed=resume)
        if resume:
            folder.check_inputs(self._inputs)
            self._state = self._restore(folder)
        else:
            self._state = LoopState()
        folder.write_start(self.config, self._inputs)
        if self.is_first:
            say_what_will_disappoint(self._model, self.config)
        self._on_step = on_step
        with self._scorer, self._stop:
            try:
                before = self._evaluation(folder, "before")
                self._steps(folder)
                after = self._evaluation(folder, "after")
            except StepAbandonedError:
                # The last step is saved, and of several processes the others may be gone by then.
                if not self._is_finished(self._state):
                    self._save(folder)
                raise TrainingInterrupted(folder.path, self._state.step) from None
            except (
                RewardError,
                DataError,
                InvalidInputError,
                PromptTooLongError,
                PoolTooSmallError,
            ):
                # The weights are sound: the steps since the last checkpoint are not to be lost.
                # Of several processes only this one is here, and cannot gather split tensors.
                if self._state.step > 0 and self._shards is None:
                    self._save(folder)
                raise
        return TrainResult(
            run_dir=folder.path,
            before=before,
            after=after,
            num_steps=self._state.step,
            num_tokens=self._state.num_tokens,
            seconds=time.perf_counter() - began,
        )

    def _open(self, *, is_resumed: bool) -> RunFolder:
        """Open the run's folder; the first process makes it and tells the others where it is."""
        if self._group.is_first:
            folder = RunFolder.open(self.config) if is_resumed else RunFolder.create(self.config)
            self._group.first(folder.path)
            return folder
        return SilentRunFolder(self._group.first(Path()))

    def _steps(self, folder: RunFolder) -> None:
        config, is_checked, group = self.config, False, self._group
        self._collector = collector = Collector(
            self.engine,
            self._scorer,
            self._source,
            config,
            check=self._check_stop,
            group=group,
            open_trees=self._open_trees,
        )
        progress = Progress(
            config.num_steps, first_step=self._state.step, is_silent=not group.is_first
        )
        with progress:
            self._evaluate_if_due(folder)  # A resumed run may have been stopped in the midst of it.
            while not self._is_finished(self._state):
                self._stop.requested = group.any(self._stop.requested)
                self._stop.check()
                began = time.perf_counter()
                progress_made = max(self._state.step / config.num_steps, self._spent())
                batch = collector.collect(self._state.cursor, progress_made)
                if batch.kept is not None and not is_checked:
                    first_step_check(
                        self._model,
                        batch.kept,
                        config.sampling.temperature,
                        update=config.cutting_update,
                        exact=self.engine.exact_forward,
                    )
                    is_checked = True
                sampled = time.perf_counter()
                updated = self._train_on(batch.kept) if batch.kept is not None else {}
                metrics = self._advance(batch, updated, began, sampled)
                collector.commit()
                self._record(folder, progress, batch, metrics)

    def _advance(self, batch: Batch, updated: Metrics, began: float, sampled: float) -> Metrics:
        """Move the state on by one step and return the step's metrics."""
        ended = time.perf_counter()
        num_tokens = self._state.num_tokens + batch.sampled.num_unique_completion_tokens
        silent = 0 if batch.kept is not None else self._state.steps_without_signal + 1
        metrics = {
            **batch.metrics,
            **updated,
            "learning_rate": self._learning_rate(),
            "num_tokens": float(num_tokens),
            "policy_version": float(self.engine.policy_version),
            "step_time": ended - began,
            "perf/sample_s": sampled - began,
            "perf/train_s": ended - sampled,
            "perf/tok_per_s": batch.metrics["tree/tokens_flat"] / (ended - began),
        }
        self._state = LoopState(
            step=self._state.step + 1,
            cursor=batch.cursor,
            policy_version=self.engine.policy_version,
            num_tokens=num_tokens,
            steps_without_signal=silent,
        )
        return metrics

    def _record(
        self, folder: RunFolder, progress: Progress, batch: Batch, metrics: Metrics
    ) -> None:
        """Write, show and save what is due after a step."""
        step, config = self._state.step, self.config
        is_last = self._is_finished(self._state)
        if self._group.is_first:
            folder.log.append(step, metrics)
            progress.show(step, metrics)
            for alarm in alarms(self._state, metrics, batch.first_error):
                tell(alarm)
            if due(step, config.save_forests_every):
                folder.save_forest(step, batch.sampled)
        if due(step, config.save_every) or is_last:
            self._save(folder)
        self._tell_caller(folder, step, metrics)
        self._evaluate_if_due(folder)

    def _tell_caller(self, folder: RunFolder, step: int, metrics: Metrics) -> None:
        """Call `on_step`; where it fails, the step is saved before the run ends."""
        if self._on_step is None or not self._group.is_first:
            return
        try:
            self._on_step(step, metrics)
        except Exception:
            if self._shards is None:
                self._save(folder)
            raise

    def _train_on(self, forest: Forest) -> Metrics:
        """Make the optimizer steps of one rollout step."""
        if self.engine.model.device.type != "cpu":
            self.engine.release()  # The update needs the memory; the next rollout makes a pool.
        credited = credit(forest, forest.paths.reward, self.config.advantage.preset)
        metrics = self._update.apply(forest, credited, self._learning_rate())
        if self._shards is not None:
            self._shards.publish()
        self.engine.weights_changed()
        return metrics

    def _split(self, step: TrainStep) -> "ShardedModel | None":
        if self._group.size == 1 or self.config.update.weights is Weights.WHOLE:
            return None
        from treepo.train.sharded import ShardedModel

        return ShardedModel(self._model, step)

    def _add_adapters(self, model: Any) -> Adapters | None:
        lora = self.config.lora
        return Adapters(model, lora, self.config.seed) if lora.rank else None

    def _reference(self) -> Reference | None:
        config = self.config
        path = config.model.reference
        if config.loss.kl_weight == 0 and path is None:
            return None
        other = None if path is None else load_model(path, config.engine)[0]
        return Reference(
            self._model,
            config.sampling.temperature,
            config.cutting_update,
            adapters=self._adapters,
            other=other,
        )

    def _learning_rate(self) -> float:
        config = self.config
        return optimizer.learning_rate(
            self._state.step, config.num_steps, config.optimizer, spent=self._spent()
        )

    def _spent(self) -> float:
        """Return the fraction of the run's tokens that are sampled; 0 without a limit."""
        limit = self.config.max_sampled_tokens
        return 0.0 if limit is None else min(1.0, self._state.num_tokens / limit)

    def _is_finished(self, state: LoopState) -> bool:
        limit = self.config.max_sampled_tokens
        is_spent = limit is not None and state.num_tokens >= limit
        return is_spent or state.step >= self.config.num_steps

    def _check_stop(self, *_: object) -> None:
        """Raise StepAbandonedError when a stop was requested; several processes go on.

        They give up together, between two steps, or those that are left wait for the one that went.
        """
        if self._group.size == 1:
            self._stop.check()

    def _evaluate_if_due(self, folder: RunFolder) -> None:
        step = self._state.step
        if step > 0 and due(step, self.config.eval.every) and not self._is_finished(self._state):
            self._evaluation(folder, f"step_{step}")

    def _evaluation(self, folder: RunFolder, name: str) -> Evaluation | None:
        """Return the evaluation of that name: the run's own file, or a new one.

        Of several processes the first evaluates. When it is to stop before the last step, it gives
        the evaluation up and stops with the others, who wait for it at the next step.
        """
        if not self._group.is_first:
            return None
        try:
            return self._evaluated(folder, name)
        except StepAbandonedError:
            if self._group.size == 1 or self._is_finished(self._state):
                raise
            return None

    def _evaluated(self, folder: RunFolder, name: str) -> Evaluation | None:
        rows = self._eval_rows
        known = folder.load_evaluation(name)
        is_late = name == "before" and self._state.step > 0
        if not rows or known is not None or is_late:
            return known
        self._stop.check()
        tell(f"evaluation, {name}: {len(rows)} prompts")
        with closing(TreeProgress(f"evaluation, {name}")) as progress:

            def on_step(stats: EngineStats) -> None:
                self._stop.check()
                progress.show(stats)

            result = evaluate(
                self.engine,
                self._scorer,
                rows,
                self.config.eval,
                search=self.config.search,
                on_step=on_step,
            )
        self._stop.check()
        folder.save_evaluation(name, result)
        tell(
            f"evaluation, {name}: accuracy {100 * result.accuracy:.1f}%, greedy "
            f"{100 * result.greedy_accuracy:.1f}%, {result.seconds:.0f} s"
        )
        return result

    def _save(self, folder: RunFolder) -> None:
        is_first = self._group.is_first
        if not is_first and self._shards is None:
            return
        tensors = checkpoint.optimizer_tensors(self._trained, self._optimizer)
        if not is_first:
            return
        checkpoint.save(
            folder.path,
            self._state,
            model=self._model,
            adapters=self._adapters,
            open_trees=None if self._collector is None else self._collector.open_trees(),
            tokenizer=self._tokenizer,
            optimizer_tensors=tensors,
            keep=self.config.keep_checkpoints,
        )

    def _check_open_trees(self, saved: Path) -> None:
        """Refuse unfinished trees that this config cannot go on with, before anything is written.

        Raises:
            InvalidConfigError: The config has no room for them.
            InvalidInputError: They were made with another search, sampling or limits.
        """
        config, trees = self.config, self._open_trees
        if trees is None:
            return
        if not config.max_unfinished_trees:
            raise InvalidConfigError(
                f"{saved} has unfinished trees, which max_unfinished_trees=0 would lose; "
                "leave it as it was, or set 1"
            )
        self.engine.open_rollout(config.search, config.sampling, config.seed, saved=trees)

    def _restore(self, folder: RunFolder) -> LoopState:
        """Load the newest checkpoint; a run that has none starts again."""
        saved = checkpoint.latest(folder.path)
        state = LoopState() if saved is None else checkpoint.load_state(saved)
        if saved is not None:
            self._open_trees = checkpoint.load_open_trees(saved)
            if not self._is_finished(state):
                self._check_open_trees(saved)
            if self._adapters is None:
                checkpoint.load_weights(saved, self._model)
            else:
                self._adapters.load(saved)
            if self._shards is not None:
                self._shards.take()
            checkpoint.load_optimizer(saved, self._trained, self._optimizer)
        folder.truncate(state.step, is_finished=self._is_finished(state))
        self.engine.policy_version = state.policy_version
        return state


def due(step: int, every: int) -> bool:
    """Whether something that happens every `every` steps happens at `step`; 0 is never."""
    return every > 0 and step % every == 0
