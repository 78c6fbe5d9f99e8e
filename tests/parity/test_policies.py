"""The engine follows the search's policies: verdicts, text rules, shared prefixes."""

import numpy as np
import pytest
from tiny_models import VOCAB_SIZE
from tokenizers import AddedToken, Tokenizer, models
from transformers import PreTrainedTokenizerFast

from treepo.config import EngineConfig, SamplingParams, SearchConfig, StopConfig
from treepo.engine import Continue, Engine, Prune, Stop
from treepo.errors import InvalidConfigError, InvalidInputError
from treepo.forest import FinishReason
from treepo.tasks import embedded

SEARCH = SearchConfig(width=6, segment_len=4, max_depth=3, fallback="none")
JUDGED = SEARCH.replace(verdicts="segments")
GREEDY = SamplingParams(temperature=0.0)
BLOCK_SIZE = 4


@pytest.fixture
def engine(make_model):
    return Engine(make_model("llama"), None, EngineConfig(block_size=BLOCK_SIZE, num_blocks=200))


@pytest.fixture(scope="module")
def text_engine():
    return Engine.from_pretrained(embedded.MODEL_PATH)


def tokens(forest):
    return [forest.token_ids(path).tolist() for path in range(forest.num_paths)]


def completions(engine, forest):
    ids = [forest.completion_ids(path) for path in range(forest.num_paths)]
    return engine.tokenizer.batch_decode(ids)


def test_a_judge_that_lets_all_go_on_changes_nothing(engine, prompts):
    judged = engine.rollout(prompts, JUDGED, judge=lambda tree, ids: Continue())
    assert tokens(judged) == tokens(engine.rollout(prompts, SEARCH))


def test_a_judge_sees_each_path_at_the_end_of_each_segment_that_it_outlives(engine, prompts):
    seen = []

    def judge(tree, token_ids):
        seen.append((tree, tuple(token_ids.tolist())))
        return Continue()

    forest = engine.rollout(prompts, JUDGED, judge=judge)
    boundaries = {
        (int(forest.paths.tree[path]), tuple(forest.token_ids(path)[: len(prompt) + 4 * depth]))
        for path in range(forest.num_paths)
        for prompt in [prompts[forest.paths.tree[path]]]
        for depth in (1, 2)
    }
    assert {(tree, tuple(ids)) for tree, ids in seen} == boundaries


@pytest.mark.parametrize(
    ("verdict", "reason"), [(Stop(), FinishReason.STOP), (Prune(), FinishReason.PRUNED)]
)
def test_a_verdict_ends_the_paths_of_its_tree(engine, prompts, verdict, reason):
    forest = engine.rollout(
        prompts, JUDGED, judge=lambda tree, ids: verdict if tree == 1 else Continue()
    )
    ended = forest.paths.finish == reason
    assert ended.any()
    assert (ended == (forest.paths.tree == 1)).all()
    assert engine.stats.finished_trees == len(prompts)
    assert engine.stats.prunes == int((forest.paths.finish == FinishReason.PRUNED).sum())


def test_scores_decide_who_branches(engine, prompts):
    search = JUDGED.replace(
        branch={"by": "score", "prefer": "high", "temperature": 0.01}, max_depth=2, width=6
    )
    best = {}

    def judge(tree, token_ids):
        score = float(token_ids[-1])
        best[tree] = max(best.get(tree, -1.0), score)
        return Continue(score)

    forest = engine.rollout(prompts, search, judge=judge)
    branched = np.flatnonzero(forest.paths.origin == 2)
    last = {(forest.paths.tree[p], forest.token_ids(p)[forest.paths.at[p] - 1]) for p in branched}
    assert last == set(best.items())


def test_verdicts_without_a_judge_are_refused(engine, prompts):
    with pytest.raises(InvalidConfigError, match="there is no judge; give rollout a judge"):
        engine.rollout(prompts, JUDGED)


def test_a_judge_that_nobody_asks_is_refused(engine, prompts):
    with pytest.raises(InvalidConfigError, match=r"set search\.verdicts to segments"):
        engine.rollout(prompts, SEARCH, judge=lambda tree, ids: Continue())


def test_what_is_no_verdict_is_refused_by_its_value(engine, prompts):
    with pytest.raises(InvalidInputError, match="the judge returned True"):
        engine.rollout(prompts, JUDGED, judge=lambda tree, ids: True)


def test_a_stop_string_ends_completions_with_it(text_engine):
    search = SEARCH.replace(segment_len=9, max_depth=7, stop={"strings": [";"]})
    forest = text_engine.rollout(["37539*9="], search)
    texts = completions(text_engine, forest)
    stopped = forest.paths.finish == FinishReason.STOP
    assert stopped.any()
    assert all(text.find(";") in (-1, len(text) - 1) for text in texts)
    assert [text.endswith((";", "<eos>")) for text in texts] == stopped.tolist()


def test_a_stop_string_that_is_a_special_token_ends_paths_at_that_token(engine, prompts):
    free = engine.generate(prompts, n=4, max_tokens=20)
    token = int(np.bincount(np.concatenate([free.completion_ids(p) for p in range(16)])).argmax())
    words = {f"w{index}": index for index in range(VOCAB_SIZE)}
    model = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=model)
    tokenizer.add_tokens([AddedToken(f"w{token}", special=True)], special_tokens=True)
    stopping = Engine(engine.model, tokenizer, engine.config)
    stop = StopConfig(strings=(f"w{token}", "no word"))
    forest = stopping.generate(prompts, n=4, max_tokens=20, stop=stop)
    for path in range(16):
        expected = free.completion_ids(path).tolist()
        if token in expected:
            expected = expected[: expected.index(token) + 1]
        assert forest.completion_ids(path).tolist() == expected
        assert (forest.paths.finish[path] == FinishReason.STOP) == (expected[-1] == token)
    assert (forest.paths.finish == FinishReason.STOP).sum() > 2


def test_a_rule_about_text_without_a_tokenizer_is_refused(engine, prompts):
    with pytest.raises(InvalidConfigError, match="the engine has no tokenizer"):
        engine.rollout(prompts, SEARCH.replace(stop={"strings": ["x"]}))


def test_the_branch_temperature_follows_the_progress(engine, prompts):
    branch = {"by": "segment_entropy", "temperature": 100.0, "final_temperature": 0.001}
    search = SEARCH.replace(width=16, branch={**branch, "schedule": "linear"})
    constant = SEARCH.replace(width=16, branch={**branch, "temperature": 0.001})
    late = tokens(engine.rollout(prompts, search, progress=1.0))
    assert late == tokens(engine.rollout(prompts, constant))
    assert late != tokens(engine.rollout(prompts, search, progress=0.0))


def test_confidence_prunes_paths_and_others_replace_them(engine, prompts):
    plain = engine.rollout(prompts, SEARCH)
    threshold = float(np.nanmedian(plain.tokens.logprob))
    prune = {"by": "logprob", "window": 4, "threshold": threshold, "leaves": "are_replaced"}
    forest = engine.rollout(prompts, SEARCH.replace(fallback="all", prune=prune))
    pruned = forest.paths.finish == FinishReason.PRUNED
    assert engine.stats.prunes == pruned.sum() > 0
    assert forest.num_paths > plain.num_paths


def with_common_prefix():
    """Two prompts that agree in three blocks and a bit, and two that are one and the same."""
    rng = np.random.default_rng(1)
    prefix = rng.integers(0, 211, 3 * BLOCK_SIZE + 1)
    first, second = (np.append(prefix, rng.integers(0, 211, n)).astype(np.uint32) for n in (3, 6))
    return [first, second, first, first]


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_oss"])
@pytest.mark.parametrize("max_num_batched_tokens", [2048, 9])
def test_a_shared_prefix_changes_neither_tokens_nor_logprobs(
    make_model, family, max_num_batched_tokens
):
    prompts = with_common_prefix()
    config = EngineConfig(
        block_size=BLOCK_SIZE, num_blocks=300, max_num_batched_tokens=max_num_batched_tokens
    )
    engine = Engine(make_model(family), None, config)
    together = engine.rollout(prompts, SEARCH, seed=3)
    assert engine.stats.shared_prefix_tokens >= 3 * 3 * BLOCK_SIZE
    for key, prompt in enumerate(prompts):
        alone = engine.rollout([prompt], SEARCH, seed=3, keys=[key])
        assert engine.stats.shared_prefix_tokens == 0
        tree = together.select(np.array([key]))
        assert tokens(tree) == tokens(alone)
        np.testing.assert_allclose(tree.tokens.logprob, alone.tokens.logprob, atol=2e-5)


def test_greedy_continuations_of_equal_prompts_are_equal(engine):
    first, _, *equal = with_common_prefix()
    forest = engine.generate([first, *equal], max_tokens=8, sampling=GREEDY)
    assert tokens(forest) == [tokens(forest)[0]] * 3
    assert engine.stats.shared_prefix_tokens > 0


def test_admission_bounds_memory_and_changes_no_token(make_model, prompts):
    model, limits = make_model("llama"), {"block_size": BLOCK_SIZE, "num_blocks": 60}
    careful, eager, old_first = (
        Engine(model, None, EngineConfig(**limits, **more))
        for more in ({"admission_percent": 1}, {"admission_percent": 900}, {"age_bias": 10**9})
    )
    expected = tokens(careful.rollout(prompts, SEARCH))
    assert tokens(eager.rollout(prompts, SEARCH)) == expected
    assert tokens(old_first.rollout(prompts, SEARCH)) == expected
    assert careful.stats.peak_blocks < eager.stats.peak_blocks


def test_rows_are_counted(engine, prompts):
    engine.rollout(prompts, SEARCH)
    stats = engine.stats
    assert stats.row_steps == stats.steps * engine.config.max_num_seqs
    assert stats.row_steps > stats.idle_row_steps > stats.round_wait_row_steps >= 0
