"""The engine reports bad input clearly and leaves the model as it found it."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import MODELS
from transformers import T5Config, T5ForConditionalGeneration

import treepo.tasks
from treepo.config import Dtype, EngineConfig, Packing, SamplingParams, SearchConfig
from treepo.engine import Continue, Engine, plain_attention
from treepo.errors import (
    CheckpointError,
    InvalidConfigError,
    InvalidInputError,
    NotFiniteError,
    PoolTooSmallError,
    PromptTooLongError,
    UnsupportedModelError,
)

EMBEDDED = Path(treepo.tasks.__file__).parent / "model"
SEARCH = SearchConfig(width=4, segment_len=4, max_depth=3)


@pytest.fixture
def engine(make_model):
    return Engine(make_model("llama"), None, EngineConfig(block_size=4, num_blocks=200))


def tokens(forest):
    return [forest.token_ids(path).tolist() for path in range(forest.num_paths)]


def test_a_rollout_has_width_leaves_for_each_prompt(engine, prompts):
    forest = engine.rollout(prompts, SEARCH)
    assert np.diff(forest.trees.path_start).tolist() == [4, 4, 4, 4]


def test_equal_seeds_give_equal_forests_and_other_seeds_other_ones(engine, prompts):
    first, again, other = (tokens(engine.rollout(prompts, SEARCH, seed=s)) for s in (5, 5, 6))
    assert first == again
    assert first != other


def test_a_tree_follows_its_key_not_its_place(engine, prompts):
    forward = engine.rollout(prompts, SEARCH, keys=[10, 11, 12, 13])
    backward = engine.rollout(prompts[::-1], SEARCH, keys=[13, 12, 11, 10])
    assert tokens(forward.select(np.array([1]))) == tokens(backward.select(np.array([2])))


def test_generate_forks_only_at_the_prompt(engine, prompts):
    forest = engine.generate(prompts, n=5, max_tokens=6)
    assert forest.num_paths == 20
    prompt_lens = forest.trees.prompt_len[forest.paths.tree]
    forked = forest.paths.parent >= 0
    assert (forest.paths.at[forked] == prompt_lens[forked]).all()
    assert all(len(forest.completion_ids(path)) == 6 for path in range(20))


def test_completions_end_at_an_end_of_sequence_token(make_model, prompts):
    model = make_model("llama")
    model.generation_config.eos_token_id = list(range(40))
    forest = Engine(model, None).generate(prompts, n=8, max_tokens=30)
    for path in range(forest.num_paths):
        completion = forest.completion_ids(path)
        ends = np.flatnonzero(completion < 40)
        assert ends.tolist() in ([], [len(completion) - 1])


def test_weights_changed_raises_the_recorded_policy_version(engine, prompts):
    engine.weights_changed()
    forest = engine.generate(prompts[:1], max_tokens=3)
    sampled = np.isfinite(forest.tokens.logprob)
    assert engine.policy_version == 1
    assert (forest.tokens.version[sampled] == 1).all()


def test_the_pool_can_be_released_and_made_again(engine, prompts):
    before = tokens(engine.rollout(prompts, SEARCH))
    engine.release()
    assert tokens(engine.rollout(prompts, SEARCH)) == before


def test_a_pool_that_is_made_again_is_as_large_whatever_is_free_by_then(make_model, monkeypatch):
    engine = Engine(make_model("llama"), None, EngineConfig(max_num_seqs=4))
    size = engine.acquire().num_blocks
    engine.release()
    monkeypatch.setattr("treepo.engine.kv.free_bytes", lambda device: 1 << 20)
    assert engine.acquire().num_blocks == size


def test_positions_at_which_rows_would_rotate_each_other_are_refused():
    factors = {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, **factors}
    model = MODELS["phi3"].make(rope_parameters=rope, original_max_position_embeddings=24)
    with pytest.raises(InvalidConfigError, match=r"beyond 24 tokens .* at most 24"):
        Engine(model, None, EngineConfig(max_model_len=25))
    engine = Engine(model, None, EngineConfig(max_model_len=24))
    prompts = [list(range(1, 21)), [3, 4]]
    both = tokens(engine.generate(prompts, max_tokens=4, keys=[0, 1]))
    alone = [tokens(engine.generate([p], max_tokens=4, keys=[k])) for k, p in enumerate(prompts)]
    assert both == alone[0] + alone[1]


def test_statistics_count_what_was_sampled(engine, prompts):
    seen = []
    forest = engine.generate(prompts, n=3, max_tokens=6, on_step=lambda s: seen.append(s.steps))
    assert engine.stats.decoded_tokens == 4 * 3 * 6
    # A prompt of one token needs no row of more than one.
    assert engine.stats.prefill_tokens == sum(map(len, prompts[1:]))
    assert seen == list(range(1, engine.stats.steps + 1))
    assert engine.stats.finished_trees == forest.num_trees
    assert engine.stats.decoded_tokens_per_s > 0


def test_the_training_flag_of_every_module_is_restored(make_model, prompts):
    model = make_model("llama").train()
    model.model.layers[1].eval()
    before = [module.training for module in model.modules()]
    Engine(model, None).generate(prompts[:1], max_tokens=2)
    assert [module.training for module in model.modules()] == before


def test_a_model_that_sampled_can_be_trained(make_model, prompts):
    model = make_model("llama")
    engine = Engine(model, None)
    engine.generate(prompts[:1], max_tokens=2)
    model.set_attn_implementation("sdpa")
    model(torch.tensor([[1, 2, 3]])).logits.sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    engine.generate(prompts[:1], max_tokens=2)


def test_new_weights_are_seen_by_the_next_rollout(engine, prompts):
    greedy = SamplingParams(temperature=0.0)
    before = tokens(engine.generate(prompts, max_tokens=5, sampling=greedy))
    with torch.no_grad():
        engine.model.lm_head.weight.neg_()
    assert tokens(engine.generate(prompts, max_tokens=5, sampling=greedy)) != before


def test_sinks_that_are_written_past_their_version_are_seen_by_the_next_rollout(
    make_model, make_config, prompts
):
    model = make_model("gpt_oss")
    engine = Engine(model, None, make_config(block_size=4))
    before = engine.rollout(prompts, SEARCH).tokens.logprob
    for layer in model.model.layers:
        version = layer.self_attn.sinks._version
        layer.self_attn.sinks.data.add_(3.0)
        assert layer.self_attn.sinks._version == version
    engine.weights_changed()
    found = engine.rollout(prompts, SEARCH).tokens
    fresh = Engine(copy.deepcopy(model), None, make_config(block_size=4))
    expected = fresh.rollout(prompts, SEARCH).tokens
    assert not np.array_equal(found.logprob, before, equal_nan=True)
    np.testing.assert_array_equal(found.id, expected.id)
    np.testing.assert_array_equal(found.logprob, expected.logprob)


def test_a_prompt_as_long_as_the_context_is_refused_with_both_lengths(engine):
    with pytest.raises(PromptTooLongError, match=r"prompt 1 has 128 tokens.* 128"):
        engine.generate([[1], [2] * 128])


def test_a_pool_that_cannot_hold_one_path_is_refused_with_both_sizes(make_model):
    engine = Engine(make_model("llama"), None, EngineConfig(block_size=4, num_blocks=5))
    with pytest.raises(PoolTooSmallError, match=r"\d+ .*\d+"):
        engine.generate([[1] * 20], max_tokens=30)


def test_a_memory_budget_below_one_path_is_refused(make_model):
    engine = Engine(make_model("llama"), None, EngineConfig(kv_cache_gib=1e-9))
    with pytest.raises(PoolTooSmallError):
        engine.generate([[1] * 20], max_tokens=30)


def test_a_context_longer_than_the_models_is_refused(make_model):
    with pytest.raises(InvalidConfigError, match="max_model_len = 129 is above the 128 tokens"):
        Engine(make_model("llama"), None, EngineConfig(max_model_len=129))


def test_a_token_outside_the_vocabulary_is_refused(engine):
    with pytest.raises(InvalidInputError, match="token 211"):
        engine.generate([[1, 211]])


def test_keys_that_do_not_match_the_prompts_are_refused(engine, prompts):
    with pytest.raises(InvalidInputError, match="4 prompts have 1 keys"):
        engine.generate(prompts, keys=[3])


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=str(tmp_path)):
        Engine.from_pretrained(tmp_path)


def test_a_folder_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="there is no folder"):
        Engine.from_pretrained(tmp_path / "absent")


def test_weights_that_cannot_be_read_are_refused(tmp_path):
    for file in EMBEDDED.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match="cannot load the model"):
        Engine.from_pretrained(tmp_path)


def test_a_saved_model_of_another_kind_is_refused_by_name(tmp_path):
    sizes = {"vocab_size": 32, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1}
    T5ForConditionalGeneration(T5Config(**sizes, num_heads=2)).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModelError, match="T5ForConditionalGeneration"):
        Engine.from_pretrained(tmp_path)


def test_overrides_replace_fields_of_the_config():
    engine = Engine.from_pretrained(EMBEDDED, EngineConfig(block_size=4), max_num_seqs=7)
    assert (engine.config.block_size, engine.config.max_num_seqs) == (4, 7)


def test_text_prompts_end_with_the_answer_of_the_embedded_model():
    engine = Engine.from_pretrained(EMBEDDED)
    forest = engine.generate(["37539*9="], max_tokens=60, sampling=SamplingParams(temperature=0.0))
    assert forest.token_ids(0)[-1] in engine.eos_token_ids
    assert "#" in engine.tokenizer.decode(forest.completion_ids(0))


def test_bfloat16_weights_give_a_bfloat16_pool():
    # Without packed weights any processor takes them.
    engine = Engine.from_pretrained(EMBEDDED, dtype=Dtype.BFLOAT16, packing=Packing.NEVER)
    assert engine.acquire().layer(0)[0].dtype == torch.bfloat16
    assert engine.generate(["37539*9="], n=2, max_tokens=9).num_paths == 2


def test_nan_weights_are_refused_and_do_not_spoil_later_rollouts(engine, prompts):
    expected = tokens(engine.rollout(prompts, SEARCH))
    weight = engine.model.model.layers[0].self_attn.v_proj.weight
    saved = weight.detach().clone()
    with torch.no_grad():
        weight.fill_(float("nan"))
    # Longer prompts first, so that later rows find slots of these in their blocks.
    with pytest.raises(NotFiniteError):
        engine.rollout(prompts[::-1], SEARCH)
    with torch.no_grad():
        weight.copy_(saved)
    assert tokens(engine.rollout(prompts, SEARCH)) == expected


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("llama", "model.layers.0.self_attn.v_proj.weight"),
        ("gpt_oss", "model.layers.0.self_attn.sinks"),
    ],
)
def test_after_nan_weights_an_engine_is_as_a_fresh_one(make_model, prompts, family, name):
    config = EngineConfig(block_size=4, num_blocks=200)
    model = make_model(family)
    engine = Engine(model, None, config)
    pool = engine.acquire()
    weight = model.get_parameter(name).data
    saved = weight.clone()
    weight.fill_(float("nan"))
    engine.weights_changed()
    with pytest.raises(NotFiniteError):
        engine.rollout(prompts[::-1], SEARCH)
    weight.copy_(saved)
    engine.weights_changed()
    assert engine.acquire() is not pool
    found, expected = (x.rollout(prompts, SEARCH) for x in (engine, Engine(model, None, config)))
    np.testing.assert_array_equal(found.tokens.id, expected.tokens.id)
    np.testing.assert_array_equal(found.tokens.logprob, expected.tokens.logprob)


def test_an_interrupted_engine_works_on(engine, prompts):
    expected = tokens(engine.rollout(prompts, SEARCH))

    def interrupt(stats):
        if stats.steps == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine.rollout(prompts, SEARCH, on_step=interrupt)
    assert tokens(engine.rollout(prompts, SEARCH)) == expected


def test_no_prompts_give_an_empty_forest(engine):
    assert engine.rollout([], SEARCH).num_trees == 0


def test_a_text_in_place_of_a_list_of_prompts_is_refused(engine):
    with pytest.raises(InvalidInputError, match="put it in a list"):
        engine.generate("37539*9=")


def test_a_rollout_within_a_rollout_is_refused_and_the_outer_one_unharmed(engine, prompts):
    expected = tokens(engine.rollout(prompts, SEARCH))

    def nested(stats):
        with pytest.raises(InvalidInputError, match="rollout of this engine is running"):
            engine.rollout(prompts[::-1], SEARCH, seed=4)

    assert tokens(engine.rollout(prompts, SEARCH, on_step=nested)) == expected


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_a_plain_forward_within_a_rollout_gives_the_plain_logits(make_model, prompts, family):
    model, ids = make_model(family), torch.arange(9)[None]
    with torch.no_grad():
        expected = model(input_ids=ids).logits
    engine = Engine(model, None)
    whole, found = tokens(engine.rollout(prompts, SEARCH)), []

    def look(*_):
        with plain_attention(engine.model):
            found.append(engine.model(input_ids=ids).logits)
        return Continue()

    judged = SEARCH.replace(verdicts="segments")
    assert tokens(engine.rollout(prompts, judged, on_step=look, judge=look)) == whole
    assert len(found) > engine.stats.steps
    for logits in found:
        torch.testing.assert_close(logits, expected, atol=2e-4 * float(expected.max()), rtol=0)


def test_two_engines_on_one_model_do_not_disturb_each_other(make_model, prompts):
    model = make_model("llama")
    one, other = (Engine(model, None, EngineConfig(block_size=n)) for n in (4, 2))
    expected = tokens(one.rollout(prompts, SEARCH))
    forest = one.rollout(prompts, SEARCH, on_step=lambda _: other.generate(prompts, max_tokens=1))
    assert tokens(forest) == expected


@pytest.mark.parametrize("seed", range(3))
def test_limits_do_not_change_the_tokens(make_model, prompts, seed):
    model = make_model("llama")
    tight = EngineConfig(block_size=4, num_blocks=13, max_num_seqs=3, max_num_batched_tokens=7)
    wide = tokens(Engine(model, None).rollout(prompts, SEARCH, seed=seed))
    assert tokens(Engine(model, None, tight).rollout(prompts, SEARCH, seed=seed)) == wide


def test_a_vocabulary_above_16_bits_is_sampled_from_whole(make_model, prompts):
    model = make_model("llama", vocab_size=70_001)
    forest = Engine(model, None).generate(prompts, n=8, max_tokens=4)
    assert 65_536 < forest.tokens.id.max() < 70_001
