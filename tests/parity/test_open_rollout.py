"""Trees that grow in several calls, under the weights of each."""

import numpy as np
import pytest
import torch

from treepo import Engine, EngineConfig, SamplingParams, SearchConfig
from treepo.config import LossConfig
from treepo.errors import InvalidConfigError, InvalidInputError, NotFiniteError
from treepo.forest import TokenKind
from treepo.tasks import embedded
from treepo.train.pack import pack
from treepo.train.step import TrainStep

SEARCH = SearchConfig(width=4, segment_len=5, max_depth=8)
PROMPTS = [row["prompt"] for row in embedded.heldout_examples(9)]


@pytest.fixture
def engine():
    torch.set_num_threads(1)
    return Engine.from_pretrained(str(embedded.MODEL_PATH), EngineConfig(max_num_seqs=10))


class StoppedError(Exception):
    pass


def stop_at(**counts):
    """A callback that gives up when the statistics say so."""

    def check(stats):
        if all(getattr(stats, name) == value for name, value in counts.items()):
            raise StoppedError

    return check


def columns(forest, but=()):
    return {k: v for k, v in forest.columns().items() if k not in but}


def assert_same(one, other):
    for name, column in columns(one).items():
        np.testing.assert_array_equal(other.columns()[name], column, err_msg=name)


def in_pieces(engine, rollout, sizes):
    found = []
    for size in sizes:
        forest = rollout.run(size)
        found += [forest.select([tree]) for tree in range(forest.num_trees)]
    return {int(forest.trees.key[0]): forest for forest in found}


def test_trees_in_pieces_are_those_of_one_rollout(engine):
    whole = engine.rollout(PROMPTS, SEARCH, seed=3)
    rollout = engine.open_rollout(SEARCH, seed=3)
    rollout.add(PROMPTS[:5], range(5))
    found = in_pieces(engine, rollout, [1, 2])
    engine.generate(PROMPTS[:2], n=2, max_tokens=9)  # Another rollout uses the pool in between.
    rollout.add(PROMPTS[5:], range(5, 9))
    found |= in_pieces(engine, rollout, [1, 3, 9])
    assert rollout.is_done
    assert (rollout.num_trees, rollout.num_open) == (9, 0)
    assert sorted(found) == list(range(9))
    for key, forest in found.items():
        assert_same(whole.select([key]), forest)


def test_bytes_go_on_as_the_rollout_does(engine):
    straight, cut = (engine.open_rollout(SEARCH, seed=3) for _ in range(2))
    for rollout in (straight, cut):
        rollout.add(PROMPTS, range(9))
        first = rollout.run(2)
    again = engine.open_rollout(SEARCH, seed=3, saved=cut.to_bytes())
    assert (again.num_trees, again.num_open) == (9, 9 - first.num_trees)
    for size in (3, 9):
        assert_same(straight.run(size), again.run(size))


def test_tokens_record_the_weights_that_sampled_them(engine):
    rollout = engine.open_rollout(SEARCH, SamplingParams(), seed=3)
    rollout.add(PROMPTS, range(9))
    rollout.run(1)
    old = {name: value.clone() for name, value in engine.model.state_dict().items()}
    with torch.no_grad():
        for value in engine.model.parameters():
            value.mul_(1.02)
    engine.weights_changed()
    forest = rollout.run(9)
    version = forest.tokens.version[forest.tokens.kind == TokenKind.SAMPLED]
    assert set(version) == {0, 1}
    packed = pack(forest)
    step = TrainStep(engine.model, LossConfig(), 1.0, exact=engine.exact_forward)
    new_logprob = step.fixed_logprobs(packed)
    engine.model.load_state_dict(old)
    old_logprob = step.fixed_logprobs(packed)
    version = forest.tokens.version[packed.token_index[packed.target]]
    np.testing.assert_array_equal(new_logprob[version == 1], packed.old_logprob[version == 1])
    np.testing.assert_array_equal(old_logprob[version == 0], packed.old_logprob[version == 0])
    assert np.abs(new_logprob - old_logprob).max() > 1e-3


def test_a_callback_that_gives_up_loses_no_token(engine):
    whole = engine.rollout(PROMPTS, SEARCH, seed=3)
    rollout = engine.open_rollout(SEARCH, seed=3)
    rollout.add(PROMPTS, range(9))
    with pytest.raises(StoppedError):
        rollout.run(9, stop_at(steps=7))
    assert_same(whole, rollout.run(9))


def test_trees_that_are_done_when_a_callback_gives_up_are_returned_by_the_next_call(engine):
    whole = engine.rollout(PROMPTS, SEARCH, seed=3)
    for is_saved in (False, True):
        rollout = engine.open_rollout(SEARCH, seed=3)
        rollout.add(PROMPTS, range(9))
        with pytest.raises(StoppedError):
            rollout.run(9, stop_at(finished_trees=3))
        assert rollout.num_open == 9
        if is_saved:
            rollout = engine.open_rollout(SEARCH, seed=3, saved=rollout.to_bytes())
        assert_same(whole, rollout.run(9))
        assert rollout.num_open == 0


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_step_that_fails_loses_no_token(engine, monkeypatch, error):
    whole = engine.rollout(PROMPTS, SEARCH, seed=3)
    rollout = engine.open_rollout(SEARCH, seed=3)
    rollout.add(PROMPTS, range(9))
    forward, calls = engine.model.forward, []

    def fails_once(*args, **kwargs):
        calls.append(None)
        if len(calls) == 7:
            raise error("out of memory")
        return forward(*args, **kwargs)

    monkeypatch.setattr(engine.model, "forward", fails_once)
    with pytest.raises(error, match="out of memory"):
        rollout.run(9)
    assert not rollout.is_done
    assert_same(whole, rollout.run(9))
    assert rollout.is_done


def test_trees_go_on_after_logits_that_were_not_finite(engine):
    whole = engine.rollout(PROMPTS, SEARCH, seed=3)
    rollout = engine.open_rollout(SEARCH, seed=3)
    rollout.add(PROMPTS, range(9))
    with pytest.raises(StoppedError):
        rollout.run(9, stop_at(steps=7))
    weight = engine.model.lm_head.weight.data
    saved = weight.clone()
    weight.fill_(float("nan"))
    engine.weights_changed()
    with pytest.raises(NotFiniteError):
        rollout.run(9)
    weight.copy_(saved)
    engine.weights_changed()
    forest = rollout.run(9)
    for name in columns(whole, but=("token_version",)):
        np.testing.assert_array_equal(forest.columns()[name], whole.columns()[name], name)
    assert set(forest.tokens.version) == {0, 2}


def test_a_rollout_is_not_done_while_finished_trees_have_not_been_returned(engine):
    whole = engine.rollout(PROMPTS, SEARCH, seed=3)
    rollout = engine.open_rollout(SEARCH, seed=3)
    assert rollout.is_done
    rollout.add(PROMPTS, range(9))
    assert not rollout.is_done
    with pytest.raises(StoppedError):
        rollout.run(9, stop_at(finished_trees=9))
    assert not engine.open_rollout(SEARCH, seed=3, saved=rollout.to_bytes()).is_done
    assert not rollout.is_done
    assert_same(whole, rollout.run(9))
    assert rollout.is_done


def test_what_does_not_fit_is_refused(engine):
    rollout = engine.open_rollout(SEARCH)
    with pytest.raises(InvalidInputError, match="2 prompts have 1 keys"):
        rollout.add(PROMPTS[:2], [0])
    with pytest.raises(InvalidConfigError, match="judge"):
        engine.open_rollout(SearchConfig(verdicts="segments"))
    rollout.add(PROMPTS[:2], [0, 1])
    small = Engine(engine.model, engine.tokenizer, EngineConfig(max_num_seqs=10, num_blocks=20))
    with pytest.raises(InvalidInputError, match=r"engine\.num_blocks"):
        small.open_rollout(SEARCH, saved=rollout.to_bytes())
    for key, value in {"block_size": 32, "max_num_seqs": 11, "max_model_len": 99}.items():
        config = EngineConfig(**{"max_num_seqs": 10, key: value})
        other = Engine(engine.model, engine.tokenizer, config)
        with pytest.raises(InvalidInputError, match=rf"engine\.{key} = \d+, and it is {value} now"):
            other.open_rollout(SEARCH, saved=rollout.to_bytes())
    with pytest.raises(InvalidInputError, match=r"made with search\.width = 4, and it is 5"):
        engine.open_rollout(SEARCH.replace(width=5), saved=rollout.to_bytes())
    with pytest.raises(InvalidInputError, match=r"sampling\.temperature = 1\.0, and it is 0\.5"):
        engine.open_rollout(SEARCH, SamplingParams(temperature=0.5), saved=rollout.to_bytes())
    for damaged in (b"", rollout.to_bytes()[:9], rollout.to_bytes()[:-9]):
        with pytest.raises(InvalidInputError):
            engine.open_rollout(SEARCH, saved=damaged)
