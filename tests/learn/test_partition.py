"""Trees cut into parts: the parts, and the gradient of the whole."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import TINY
from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM

from treepo import core
from treepo.config import (
    Correct,
    CorrectionConfig,
    LoraConfig,
    LossConfig,
    Objective,
    Parts,
    Ratio,
    TrainConfig,
    UpdateConfig,
)
from treepo.errors import InvalidConfigError
from treepo.forest import FinishReason, Forest
from treepo.train.adapters import Adapters
from treepo.train.objective import Fixed
from treepo.train.pack import Spans, pack
from treepo.train.partition import cut
from treepo.train.step import TrainStep

TEMPERATURE = 0.7
BUDGETS = [200, 60, 30, 12, 6, 1]


class PackedStub:
    """What cutting looks at."""

    def __init__(self, spans):
        self.spans = spans


@st.composite
def trees(draw):
    """Spans of a few trees in depth-first order."""
    parents, lengths = [], []
    for node in range(draw(st.integers(1, 25))):
        chain = [node - 1] if node else []
        while chain and chain[-1] >= 0:
            chain.append(parents[chain[-1]])
        # A depth-first order goes on below any ancestor of the node before.
        parents.append(draw(st.sampled_from(chain)) if chain else -1)
        lengths.append(draw(st.integers(1, 9)))
    length = np.array(lengths)
    return Spans(start=np.cumsum(length) - length, length=length, parent=np.array(parents))


@given(trees(), st.integers(1, 40))
def test_parts_are_connected_small_and_hold_every_token_once(spans, budget):
    parts = cut(PackedStub(spans), budget)
    tokens = np.concatenate([part.tokens for part in parts])
    assert sorted(tokens) == list(range(spans.length.sum()))
    chain_of = {}
    for node in range(len(spans.start)):
        above = spans.parent[node]
        behind = [] if above < 0 else chain_of[spans.start[above] + spans.length[above] - 1]
        for token in range(spans.start[node], spans.start[node] + spans.length[node]):
            behind = [*behind, token]
            chain_of[token] = behind
    for index, part in enumerate(parts):
        assert 1 <= len(part.tokens) <= budget
        assert (np.diff(part.tokens) > 0).all()
        assert part.parent < index
        assert list(part.chain) == chain_of[part.tokens[0]][:-1]
        if len(part.chain):
            assert part.chain[-1] in parts[part.parent].tokens
        # Within the part each node's ancestors are its chain in the whole tree.
        starts = part.spans.start
        for node, above in enumerate(part.spans.parent):
            first = part.tokens[starts[node]]
            expected = chain_of[first][:-1][len(part.chain) :]
            found = []
            while above >= 0:
                own = part.tokens[starts[above] : starts[above] + part.spans.length[above]]
                found = [*own, *found]
                above = part.spans.parent[above]
            assert found == expected


def backward(model, forest, loss, update=None, fixed=None):
    packed = pack(forest)
    values = np.random.default_rng(3).normal(size=forest.num_paths)
    step = TrainStep(model, loss, TEMPERATURE, update=update)
    model.zero_grad()
    metrics = step.backward(packed, values, packed.num_trajectory_tokens, fixed)
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad]), metrics


def noisy(model, forest):
    """Old and reference log-probs near the model's own."""
    packed = pack(forest)
    rng = np.random.default_rng(5)
    now = TrainStep(model, LossConfig(), TEMPERATURE).fixed_logprobs(packed)
    draws = [now + 0.3 * rng.normal(size=len(now)) for _ in range(2)]
    return Fixed(old=draws[0].astype(np.float32), reference=draws[1].astype(np.float32))


LOSSES = {
    "dapo": LossConfig(),
    "everything": LossConfig(
        dual_clip=3.0,
        kl_weight=0.2,
        entropy_weight=0.1,
        correction=CorrectionConfig(by=Correct.TRUNCATE, level=Ratio.TRAJECTORY),
    ),
    "cispo": LossConfig(objective=Objective.CISPO, kl_weight=0.1, kl="k2"),
}


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("parts", Parts)
@pytest.mark.parametrize("loss", LOSSES)
def test_parts_have_the_gradient_of_the_whole_tree(llama64, grow_forest, budget, parts, loss):
    forest = grow_forest(2, vocab=23, num_trees=2)
    fixed = noisy(llama64, forest)
    expected, whole = backward(llama64, forest, LOSSES[loss], fixed=fixed)
    update = UpdateConfig(max_tokens_per_part=budget, parts=parts)
    actual, metrics = backward(llama64, forest, LOSSES[loss], update, fixed)
    assert float((actual - expected).norm() / expected.norm()) < 1e-12
    for name in ("loss", "entropy", "kl", "abs_log_ratio", "ratio_max", "clip_ratio_low"):
        assert getattr(metrics, name) == pytest.approx(getattr(whole, name), rel=1e-9)
    is_cut = forest.num_tokens > budget
    assert whole.num_forward_tokens == forest.num_tokens
    times = 2 if is_cut and parts is Parts.RECOMPUTE else 1
    assert metrics.num_forward_tokens == times * forest.num_tokens


def test_ratios_of_trajectories_need_two_passes(llama64, grow_forest):
    forest = grow_forest(4, vocab=23)
    loss = LossConfig(ratio=Ratio.TRAJECTORY, clip_low=0.5, clip_high=2.0)
    fixed = noisy(llama64, forest)
    expected, _ = backward(llama64, forest, loss, fixed=fixed)
    update = UpdateConfig(max_tokens_per_part=12)
    actual, _ = backward(llama64, forest, loss, update, fixed)
    assert float((actual - expected).norm() / expected.norm()) < 1e-12
    with pytest.raises(InvalidConfigError, match=r"update\.parts = recompute"):
        backward(llama64, forest, loss, update.replace(parts=Parts.KEEP), fixed)
    with pytest.raises(InvalidConfigError, match=r"update\.parts = recompute"):
        TrainConfig(loss=loss, update=update.replace(parts=Parts.KEEP))


@pytest.mark.parametrize("parts", Parts)
def test_a_sliding_window_reaches_into_the_parts_above(grow_forest, parts):
    torch.manual_seed(1)
    config = Gemma2Config(**TINY, sliding_window=4, query_pre_attn_scalar=4)
    model = Gemma2ForCausalLM(config)
    forest = grow_forest(4, vocab=23)
    expected, _ = backward(model, forest, LossConfig())
    update = UpdateConfig(max_tokens_per_part=7, parts=parts)
    actual, _ = backward(model, forest, LossConfig(), update)
    assert float((actual - expected).norm() / expected.norm()) < 1e-5


def test_fixed_log_probs_of_parts_are_those_of_the_whole(llama64, grow_forest):
    packed = pack(grow_forest(6, vocab=23))
    update = UpdateConfig(max_tokens_per_part=5)
    whole = TrainStep(llama64, LossConfig(), TEMPERATURE).fixed_logprobs(packed)
    parts = TrainStep(llama64, LossConfig(), TEMPERATURE, update=update).fixed_logprobs(packed)
    np.testing.assert_allclose(parts, whole, atol=1e-6)


def bush(num_leaves, ids):
    """Leaves behind one prompt of tokens from 9 on; ids() are a leaf's two tokens."""
    grown = core.Forest()
    prompt = np.random.default_rng(1).integers(9, 23, 9, dtype=np.uint32)
    tree = grown.add_tree(0, prompt)
    for leaf in range(num_leaves):
        path = grown.fork(tree, 0, len(prompt)) if leaf else 0
        logprob = np.full(2, -3, np.float32)
        grown.append(tree, path, np.array(ids(), np.uint32), logprob, -logprob)
        grown.finish(tree, path, int(FinishReason.STOP))
    return Forest(grown)


def errors_in_bfloat16(forest, values, update, name):
    """What a parameter's gradient in bfloat16 is off by for each update, and the right one."""
    torch.manual_seed(1)
    model = LlamaForCausalLM(LlamaConfig(**{**TINY, "num_hidden_layers": 1}))
    model.bfloat16().float()  # The weights of both number formats are the same.
    packed = pack(forest)

    def slope(update):
        step = TrainStep(model, LossConfig(clip_high=1e9), 1.0, update=update)
        model.zero_grad()
        step.backward(packed, values, packed.num_trajectory_tokens)
        return model.get_parameter(name).grad.float().clone()

    expected = slope(UpdateConfig())
    model.bfloat16()
    return [slope(own) - expected for own in update], expected


@pytest.mark.parametrize("parts", Parts)
def test_in_bfloat16_parts_are_as_near_as_the_whole(parts):
    rng = np.random.default_rng(2)
    forest = bush(60, lambda: rng.integers(0, 23, 2))
    update = [UpdateConfig(), UpdateConfig(max_tokens_per_part=6, parts=parts)]
    name = "model.layers.0.self_attn.k_proj.weight"
    (whole, cut), expected = errors_in_bfloat16(forest, rng.normal(size=60), update, name)
    assert 0 < cut.norm() < 2 * whole.norm() < 0.2 * expected.norm()


@pytest.mark.parametrize("parts", Parts)
def test_in_bfloat16_what_each_leaf_adds_to_a_key_of_the_prompt_is_not_lost(parts):
    forest = bush(60, lambda: [7, 8])
    # After the first one, each leaf has less than half a unit of bfloat16 of the sum.
    values = np.full(60, 1 / 600)
    values[0 if parts is Parts.KEEP else -1] = 1.0
    one_product = UpdateConfig(attention="dense")
    update = [one_product, UpdateConfig(max_tokens_per_part=2, parts=parts)]
    name = "model.embed_tokens.weight"
    errors, expected = errors_in_bfloat16(forest, values, update, name)
    whole, cut, right = (x[9:].norm() for x in (*errors, expected))
    assert 0 < cut < 2 * whole < 0.05 * right


def test_a_clip_on_summed_advantages_is_another_loss(llama64, grow_forest):
    forest = grow_forest(0, vocab=23)
    packed = pack(forest)
    values = np.random.default_rng(3).normal(size=forest.num_paths)
    assert len(packed.src) > packed.num_sampled_tokens
    sums = np.bincount(packed.src, weights=values[packed.src_path])
    positive = np.bincount(packed.src, weights=values[packed.src_path].clip(min=0))
    negative = np.bincount(packed.src, weights=values[packed.src_path].clip(max=0))
    r, low, high = 2.0, 0.8, 1.28
    split = positive * min(r, high) + negative * max(r, low)
    summed = np.minimum(r * sums, np.clip(r, low, high) * sums)
    clipped = np.minimum(r * values, np.clip(r, low, high) * values)
    expanded = np.bincount(packed.src, weights=clipped[packed.src_path])
    np.testing.assert_allclose(split, expanded, atol=1e-12)
    assert np.abs(summed - expanded).max() > 0.1


def test_recomputed_activations_beside_parts_are_refused():
    with pytest.raises(InvalidConfigError, match="do the same twice"):
        UpdateConfig(max_tokens_per_part=100, activations="recompute")


@pytest.mark.parametrize("parts", Parts)
def test_adapters_on_feed_forward_layers_alone_have_the_gradient_of_the_whole_tree(
    llama64, grow_forest, parts
):
    targets = ("gate_proj", "up_proj", "down_proj")
    Adapters(llama64, LoraConfig(rank=2, targets=targets), seed=0)
    llama64.double()
    with torch.no_grad():
        for parameter in llama64.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.3)  # They begin as no change.
    forest = grow_forest(2, vocab=23, num_trees=2)
    expected, _ = backward(llama64, forest, LossConfig())
    update = UpdateConfig(max_tokens_per_part=6, parts=parts)
    actual, _ = backward(llama64, forest, LossConfig(), update)
    assert float(expected.norm()) > 0
    assert float((actual - expected).norm() / expected.norm()) < 1e-12


def test_adapters_on_an_embedding_are_refused():
    model = LlamaForCausalLM(LlamaConfig(**TINY))
    own = LoraConfig(rank=2, targets=("embed_tokens", "q_proj"))
    with pytest.raises(InvalidConfigError, match=r"lora\.targets: .*embed_tokens is an embedding"):
        Adapters(model, own, seed=0)
