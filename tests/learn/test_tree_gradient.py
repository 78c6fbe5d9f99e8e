"""Law L1: the tree loss has the gradient of the same loss on separate trajectories."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import TINY
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)
from transformers.models.llama import modeling_llama
from trees import add_tree

from treepo import core
from treepo.advantages import Credit, Level, credit
from treepo.config import (
    Activations,
    Autocast,
    Average,
    Correct,
    CorrectionConfig,
    Kl,
    LossConfig,
    Ratio,
    UpdateConfig,
)
from treepo.engine import Engine
from treepo.engine.hook import plain_attention
from treepo.errors import (
    InvalidConfigError,
    InvalidInputError,
    NotFiniteError,
    UnsupportedModelError,
)
from treepo.forest import Forest, TokenKind
from treepo.lab import SEARCHES, grow, random_policy
from treepo.train.attention import DensePackedContext, PackedContext
from treepo.train.check import first_step_check
from treepo.train.forward import Forward
from treepo.train.losses import policy_loss
from treepo.train.objective import Fixed
from treepo.train.pack import pack
from treepo.train.step import TrainStep
from treepo.train.step_metrics import combine
from treepo.train.token_advantages import TokenAdvantages

LOSS = LossConfig()
TEMPERATURE = 0.7


@pytest.fixture
def llama():
    torch.manual_seed(1)
    return LlamaForCausalLM(LlamaConfig(**TINY))


def random_advantages(forest, seed):
    return np.random.default_rng(seed).normal(size=forest.num_paths)


def flat_logprobs(model, forest, implementation):
    """Log-probs [paths, n - 1] of padded trajectories by a plain forward, and the loss mask."""
    rows = [forest.token_ids(path) for path in range(forest.num_paths)]
    longest = max(len(row) for row in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.int64)
    mask = torch.zeros(len(rows), longest, dtype=torch.int64)
    sampled = torch.zeros(len(rows), longest, dtype=torch.bool)
    kind = np.asarray(forest.tokens.kind)
    for path, row in enumerate(rows):
        ids[path, : len(row)] = torch.from_numpy(row.astype(np.int64))
        mask[path, : len(row)] = 1
        kinds = kind[forest.token_index(path)]
        sampled[path, : len(row)] = torch.from_numpy(kinds == TokenKind.SAMPLED)
    with plain_attention(model, implementation):
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    logp = torch.log_softmax(logits[:, :-1] / TEMPERATURE, -1)
    return logp.gather(2, ids[:, 1:, None])[..., 0], sampled[:, 1:]


def flat_loss(model, forest, advantages, implementation="sdpa", weights=1.0):
    """The textbook DAPO loss over padded trajectories, weighted."""
    logp, sampled = flat_logprobs(model, forest, implementation)
    old = torch.zeros_like(logp)
    for path in range(forest.num_paths):
        recorded = np.asarray(forest.tokens.logprob)[forest.token_index(path)][1:]
        old[path, : len(recorded)] = torch.from_numpy(np.nan_to_num(recorded)).to(old.dtype)
    advantage = torch.from_numpy(advantages).to(logp.dtype)
    advantage = advantage[:, None] if advantage.dim() == 1 else advantage
    ratio = torch.exp(logp - old)
    clipped = torch.clamp(ratio, 1 - LOSS.clip_low, 1 + LOSS.clip_high)
    per_token = -torch.minimum(ratio * advantage, clipped * advantage)
    return (per_token * sampled * weights).sum() / (sampled * weights).sum()


def gradient(model):
    flat = [parameter.grad.reshape(-1) for parameter in model.parameters()]
    model.zero_grad()
    return torch.cat(flat)


def flat_gradient(model, forest, advantages, implementation="sdpa"):
    loss = flat_loss(model, forest, advantages, implementation)
    loss.backward()
    return gradient(model), loss.item()


def tree_gradient(model, packed, advantages, **options):
    step = TrainStep(model, LOSS, TEMPERATURE, **options)
    metrics = step.backward(packed, advantages, packed.num_trajectory_tokens)
    return gradient(model), metrics


def credit_tables(forest, credited):
    """Advantages and weights of padded trajectories, [paths, n - 1] each."""
    shape = forest.num_paths, int(forest.paths.length.max()) - 1
    tables = np.zeros(shape), np.zeros(shape)
    for path in range(forest.num_paths):
        token = forest.token_index(path)[1:]
        for table, values in zip(
            tables, credited.at(forest, np.full(len(token), path), token), strict=True
        ):
            table[path, : len(token)] = values
    return tables


def error(ours, reference):
    return float((ours - reference).norm() / reference.norm())


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("context", [PackedContext, DensePackedContext])
def test_tree_gradient_equals_separate_trajectories(llama64, grow_forest, seed, context):
    forest = grow_forest(seed, vocab=23)
    advantages = random_advantages(forest, seed)
    reference, loss = flat_gradient(llama64, forest, advantages)
    ours, metrics = tree_gradient(llama64, pack(forest), advantages, context=context)
    assert error(ours, reference) <= 1e-12
    assert metrics.loss == pytest.approx(loss, rel=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_random_forests_clip_at_both_edges(llama64, grow_forest, seed):
    forest = grow_forest(seed, vocab=23)
    _, metrics = tree_gradient(llama64, pack(forest), random_advantages(forest, seed))
    assert metrics.clip_ratio_low > 0.02
    assert metrics.clip_ratio_high > 0.02
    assert metrics.ratio_min < 0.5
    assert metrics.ratio_max > 2


def test_gradients_of_micro_batches_add_up(llama64, grow_forest):
    forest = grow_forest(11, vocab=23, num_trees=4)
    advantages = random_advantages(forest, 11)
    reference, loss = flat_gradient(llama64, forest, advantages)
    bounds = np.asarray(forest.trees.path_start)
    step = TrainStep(llama64, LOSS, TEMPERATURE)
    parts = [pack(forest, np.arange(bounds[a], bounds[b])) for a, b in ((0, 1), (1, 3), (3, 4))]
    total = sum(part.num_trajectory_tokens for part in parts)
    metrics = combine([step.backward(part, advantages, total) for part in parts])
    assert error(gradient(llama64), reference) <= 1e-12
    assert metrics.num_trajectory_tokens == total == pack(forest).num_trajectory_tokens
    assert metrics.loss == pytest.approx(loss, rel=1e-12)


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable:FutureWarning")
def test_gradient_checkpointing_changes_nothing(llama64, grow_forest):
    forest = grow_forest(2, vocab=23)
    advantages = random_advantages(forest, 2)
    plain, _ = tree_gradient(llama64, pack(forest), advantages)
    llama64.gradient_checkpointing_enable()
    llama64.train()
    checkpointed, _ = tree_gradient(llama64, pack(forest), advantages)
    assert error(checkpointed, plain) <= 1e-14


def test_predicting_from_the_previous_packed_token_is_caught(llama64, grow_forest):
    forest = grow_forest(0, vocab=23)
    advantages = random_advantages(forest, 0)
    reference, _ = flat_gradient(llama64, forest, advantages)
    packed = pack(forest)
    wrong = replace(packed, predictor=packed.target - 1)
    assert error(tree_gradient(llama64, wrong, advantages)[0], reference) > 1e-3


def test_clipping_a_summed_advantage_is_caught(llama64, grow_forest):
    forest = grow_forest(0, vocab=23)
    advantages = random_advantages(forest, 0)
    reference, _ = flat_gradient(llama64, forest, advantages)
    packed = pack(forest)
    summed = np.bincount(packed.src, weights=advantages[packed.src_path])
    logprob, _ = TrainStep(llama64, LOSS, TEMPERATURE).logprobs(packed)
    old = torch.from_numpy(packed.old_logprob).double()
    count = packed.num_trajectory_tokens
    policy_loss(logprob, old, torch.from_numpy(summed), LOSS, count).loss.backward()
    assert error(gradient(llama64), reference) > 1e-3


@pytest.mark.parametrize(
    ("model_class", "config"),
    [
        (Qwen2ForCausalLM, Qwen2Config(**TINY)),
        (Gemma2ForCausalLM, Gemma2Config(**TINY, sliding_window=4, query_pre_attn_scalar=4)),
    ],
    ids=["qwen2", "gemma2"],
)
def test_other_families_agree_in_float32(grow_forest, model_class, config):
    torch.manual_seed(1)
    model = model_class(config)
    forest = grow_forest(4, vocab=23)
    advantages = random_advantages(forest, 4)
    reference, _ = flat_gradient(model, forest, advantages, "eager")
    ours, _ = tree_gradient(model, pack(forest), advantages)
    assert error(ours, reference) < 1e-4


def test_metrics_weigh_a_token_by_its_trajectories(llama, grow_forest):
    forest = grow_forest(6, vocab=23)
    packed = pack(forest)
    _, metrics = tree_gradient(llama, packed, random_advantages(forest, 6))
    with torch.no_grad():
        logp, sampled = flat_logprobs(llama, forest, "sdpa")
    index = np.concatenate([forest.token_index(path) for path in range(forest.num_paths)])
    is_sampled = np.asarray(forest.tokens.kind)[index] == TokenKind.SAMPLED
    old = np.asarray(forest.tokens.logprob)[index[is_sampled]]
    difference = np.abs(logp[sampled].numpy() - old)
    assert metrics.abs_log_ratio == pytest.approx(difference.mean(), rel=1e-4)
    assert metrics.num_unique_tokens == forest.num_tokens
    assert metrics.num_trajectory_tokens == int(sampled.sum())


def test_a_head_with_a_bias_is_trained(llama64, grow_forest):
    llama64.lm_head = torch.nn.Linear(24, 23, bias=True).double()
    forest = grow_forest(3, vocab=23)
    advantages = random_advantages(forest, 3)
    reference, _ = flat_gradient(llama64, forest, advantages)
    ours, _ = tree_gradient(llama64, pack(forest), advantages)
    assert error(ours, reference) <= 1e-12


def test_another_attention_set_in_between_does_not_replace_the_tree(llama, grow_forest):
    packed = pack(grow_forest(1, vocab=23))
    step = TrainStep(llama, LOSS, TEMPERATURE)
    expected, _ = step.logprobs(packed)
    llama.set_attn_implementation("sdpa")
    torch.testing.assert_close(step.logprobs(packed)[0], expected)


def gpt2(**dropout):
    sizes = {"vocab_size": 23, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}
    off = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    special = {"bos_token_id": 0, "eos_token_id": 0}
    torch.manual_seed(1)
    return GPT2LMHeadModel(GPT2Config(**{**sizes, **special, **off, **dropout}))


def test_training_mode_without_dropout_is_as_good_as_evaluation_mode(grow_forest):
    packed = pack(grow_forest(1, vocab=23))
    expected, _ = TrainStep(gpt2().eval(), LOSS, TEMPERATURE).logprobs(packed)
    actual, _ = TrainStep(gpt2().train(), LOSS, TEMPERATURE).logprobs(packed)
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("name", ["resid_pdrop", "embd_pdrop", "attn_pdrop"])
def test_dropout_in_training_mode_is_refused_by_name(grow_forest, name):
    model = gpt2(**{name: 0.1}).train()
    with pytest.raises(UnsupportedModelError, match=r"drop.* 0\.1"):
        TrainStep(model, LOSS, TEMPERATURE)
    step = TrainStep(model.eval(), LOSS, TEMPERATURE)
    packed = pack(grow_forest(1, vocab=23))
    model.train()
    with pytest.raises(UnsupportedModelError, match=r"drop.* 0\.1"):
        step.logprobs(packed)
    model.eval()
    torch.testing.assert_close(step.logprobs(packed)[0], step.logprobs(packed)[0])


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable:FutureWarning")
def test_dropout_of_a_model_in_evaluation_mode_is_refused_where_activations_are_recomputed():
    update = UpdateConfig(activations=Activations.RECOMPUTE)
    with pytest.raises(UnsupportedModelError, match=r"drop.* 0\.1.*update\.activations"):
        TrainStep(gpt2(resid_pdrop=0.1).eval(), LOSS, TEMPERATURE, update=update)
    TrainStep(gpt2().eval(), LOSS, TEMPERATURE, update=update)


def test_noise_of_a_router_in_training_mode_is_refused_by_name():
    experts = {"num_local_experts": 2, "num_experts_per_tok": 1}
    torch.manual_seed(1)
    model = MixtralForCausalLM(MixtralConfig(**TINY, **experts, router_jitter_noise=0.1))
    with pytest.raises(UnsupportedModelError, match=r"router_jitter_noise = 0\.1"):
        TrainStep(model.train(), LOSS, TEMPERATURE)
    TrainStep(model.eval(), LOSS, TEMPERATURE)


def test_first_step_check_stops_a_model_whose_plain_forward_is_not_finite(
    llama, grow_forest, monkeypatch
):
    def nothing(self, token_ids):
        return torch.full((len(token_ids) - 1,), torch.nan)

    monkeypatch.setattr(TrainStep, "plain_logprobs", nothing)
    with pytest.raises(UnsupportedModelError, match="differ by nan from a plain forward"):
        first_step_check(llama, grow_forest(1, vocab=23), TEMPERATURE)


@pytest.mark.parametrize("seed", range(20))
def test_first_step_check_stops_predictions_from_the_previous_packed_token(
    llama, grow_forest, monkeypatch, seed
):
    def predict_from_the_neighbour(forest, paths=None):
        packed = pack(forest, paths)
        return replace(packed, predictor=packed.target - 1)

    monkeypatch.setattr("treepo.train.check.pack", predict_from_the_neighbour)
    with pytest.raises(UnsupportedModelError, match="differ by"):
        first_step_check(llama, grow_forest(seed, vocab=23), TEMPERATURE)


@pytest.mark.parametrize("limit", [None, 8])
def test_first_step_check_passes_a_sound_model(llama, grow_forest, limit):
    update = UpdateConfig(max_tokens_per_part=limit, autocast=Autocast.BFLOAT16)
    assert first_step_check(llama, grow_forest(1, vocab=23), TEMPERATURE, update=update) < 1e-4


def test_first_step_check_cuts_trees_as_the_update_does(llama, grow_forest, monkeypatch):
    sizes = []
    original = Forward.hidden

    def hidden(self, token_ids, positions, context):
        sizes.append(len(token_ids))
        return original(self, token_ids, positions, context)

    monkeypatch.setattr(Forward, "hidden", hidden)
    update = UpdateConfig(max_tokens_per_part=8)
    first_step_check(llama, grow_forest(1, vocab=23), TEMPERATURE, update=update)
    assert max(sizes) <= 8


def test_first_step_check_stops_a_model_that_ignores_positions(llama, grow_forest, monkeypatch):
    original = modeling_llama.LlamaRotaryEmbedding.forward

    def row_order(self, x, position_ids):
        return original(self, x, torch.arange(x.shape[1])[None])

    monkeypatch.setattr(modeling_llama.LlamaRotaryEmbedding, "forward", row_order)
    with pytest.raises(UnsupportedModelError, match="LlamaForCausalLM"):
        first_step_check(llama, grow_forest(1, vocab=23), TEMPERATURE)


def test_nan_weights_are_refused_before_the_gradient_changes(llama, grow_forest):
    forest = grow_forest(1, vocab=23)
    step = TrainStep(llama, LOSS, TEMPERATURE)
    with torch.no_grad():
        llama.model.layers[0].mlp.up_proj.weight[0, 0] = float("nan")
    packed = pack(forest)
    with pytest.raises(NotFiniteError, match="log-probs"):
        step.backward(packed, random_advantages(forest, 1), packed.num_trajectory_tokens)
    assert all(parameter.grad is None for parameter in llama.parameters())


def test_a_nan_advantage_is_named(llama, grow_forest):
    forest = grow_forest(1, vocab=23)
    packed = pack(forest)
    with pytest.raises(NotFiniteError, match="advantage is nan"):
        tree_gradient(llama, packed, np.full(forest.num_paths, np.nan))


@pytest.mark.parametrize("preset", ["vineppo", "spo_tree", "treerl", "treepo_segment"])
def test_credit_of_nodes_has_the_gradient_of_separate_trajectories(llama64, grow_forest, preset):
    forest = grow_forest(6, vocab=23)
    credited = credit(forest, np.random.default_rng(6).normal(size=forest.num_paths), preset)
    values, weights = credit_tables(forest, credited)
    flat_loss(llama64, forest, values, weights=torch.from_numpy(weights)).backward()
    expected = gradient(llama64)
    packed = pack(forest)
    advantages = TokenAdvantages.of_credit(packed, forest, credited)
    step = TrainStep(llama64, LOSS, TEMPERATURE)
    step.backward(packed, advantages, advantages.total_weight)
    assert error(gradient(llama64), expected) < 1e-12


@pytest.mark.parametrize("average", Average)
@pytest.mark.parametrize("ratio", Ratio)
def test_ratios_and_averages_are_those_of_separate_trajectories(
    llama64, grow_forest, ratio, average
):
    forest, max_tokens = grow_forest(6, vocab=23), 40
    loss = LossConfig(ratio=ratio, average=average, clip_low=0.9, clip_high=3.0)
    values = random_advantages(forest, 6)
    packed = pack(forest)
    advantages = TokenAdvantages.of_paths(packed, values).averaged(packed, average, max_tokens)
    TrainStep(llama64, loss, TEMPERATURE).backward(packed, advantages, advantages.total_weight)
    ours = gradient(llama64)
    logp, sampled = flat_logprobs(llama64, forest, "sdpa")
    total = 0.0
    has_tokens = sampled.any(1)
    for path in torch.nonzero(has_tokens)[:, 0].tolist():
        own = sampled[path]
        index = forest.token_index(path)[1:][own[: len(forest.token_index(path)) - 1].numpy()]
        old = torch.from_numpy(np.asarray(forest.tokens.logprob)[index]).to(logp.dtype)
        log_ratio = logp[path][own] - old
        if ratio is Ratio.TRAJECTORY:
            log_ratio = log_ratio.mean().expand(len(log_ratio))
        clipped = log_ratio.exp().clamp(1 - loss.clip_low, 1 + loss.clip_high)
        objective = torch.minimum(log_ratio.exp() * values[path], clipped * values[path])
        total = total - (objective.mean() if average is Average.TRAJECTORIES else objective.sum())
    divisor = {
        Average.TOKENS: sampled.sum(),
        Average.TRAJECTORIES: has_tokens.sum(),
        Average.MAX_TOKENS: has_tokens.sum() * max_tokens,
    }[average]
    (total / divisor).backward()
    assert error(ours, gradient(llama64)) < 1e-12


def test_in_a_mean_over_trajectories_each_counts_once_where_weights_are_1(grow_forest):
    forest = grow_forest(6, vocab=23)
    packed = pack(forest)
    flat = TokenAdvantages.of_paths(packed, random_advantages(forest, 6))
    found = flat.averaged(packed, Average.TRAJECTORIES, 40)
    length = np.bincount(packed.src_path)
    np.testing.assert_allclose(found.weights, 1 / length[packed.src_path])
    assert found.total_weight == pytest.approx(np.count_nonzero(length))


def test_in_a_mean_over_trajectories_each_counts_by_its_weight():
    grown = core.Forest()
    add_tree(grown, ["t#1-0", "t#1-1", "t#1-2"], [[2], [5], [3]])
    forest = Forest(grown)
    counts = np.array([0.5, 2.0, 1.0])
    of_nodes = np.ones(len(forest.nodes().parent))
    of_nodes[forest.nodes().leaf] = counts
    packed, scored = pack(forest), np.ones(3, dtype=bool)
    credited = Credit(Level.NODE, of_nodes, of_nodes, scored)
    own = TokenAdvantages.of_credit(packed, forest, credited)
    found = own.averaged(packed, Average.TRAJECTORIES, 40)
    np.testing.assert_allclose(np.bincount(packed.src_path, found.weights), counts)
    assert found.total_weight == pytest.approx(3.5)
    np.testing.assert_array_equal(found.values, own.values)


def test_in_a_mean_over_trajectories_inclusion_weights_of_a_tree_do_not_cancel():
    search = core.SearchConfig(**SEARCHES["even"], eos_token_ids=[0])
    sampled = grow(random_policy(4), search, 20, seed=3)
    forest, packed = sampled.forest, pack(sampled.forest)
    own = TokenAdvantages.of_credit(packed, forest, credit(forest, sampled.rewards, "tree_rloo"))
    found = own.averaged(packed, Average.TRAJECTORIES, 6)
    counts = np.bincount(packed.src_path, found.weights)
    assert len(np.unique(counts.round(6))) > 3
    assert found.total_weight == pytest.approx(counts.sum())
    is_shared = np.bincount(packed.src)[packed.src] > 1
    is_apart = np.bincount(packed.src_path, is_shared) == 0
    assert is_apart.sum() > 3
    np.testing.assert_allclose(counts[is_apart], forest.paths.weight[is_apart], rtol=1e-6)


@pytest.mark.parametrize("kl", Kl)
@pytest.mark.parametrize("level", Ratio)
@pytest.mark.parametrize("by", [Correct.TRUNCATE, Correct.MASK])
def test_divergence_entropy_and_correction_are_those_of_separate_trajectories(
    llama64, grow_forest, kl, level, by
):
    forest = grow_forest(7, vocab=23)
    config = LossConfig(
        kl=kl,
        kl_weight=0.3,
        entropy_weight=0.2,
        clip_low=0.9,
        clip_high=3.0,
        correction=CorrectionConfig(by=by, level=level, max_ratio=4.0),
    )
    packed = pack(forest)
    values = random_advantages(forest, 7)
    rng = np.random.default_rng(7)
    with torch.no_grad():
        now = TrainStep(llama64, config, TEMPERATURE).logprobs(packed)[0].numpy()
    old = (now + 0.3 * rng.normal(size=len(now))).astype(np.float32)
    reference = (now + 0.5 * rng.normal(size=len(now))).astype(np.float32)
    sampler = (old + 0.8 * rng.normal(size=len(now))).astype(np.float32)
    packed = replace(packed, old_logprob=sampler)
    fixed = Fixed(old=old, reference=reference)
    count = packed.num_trajectory_tokens
    TrainStep(llama64, config, TEMPERATURE).backward(packed, values, count, fixed)
    ours = gradient(llama64)

    total = 0.0
    for path in range(forest.num_paths):
        ids = torch.from_numpy(forest.token_ids(path).astype(np.int64))[None]
        with plain_attention(llama64, "sdpa"):
            logits = llama64(input_ids=ids, use_cache=False).logits[0, :-1] / TEMPERATURE
        logp = torch.log_softmax(logits, -1)
        kinds = np.asarray(forest.tokens.kind)[forest.token_index(path)][1:]
        own = torch.from_numpy(kinds == TokenKind.SAMPLED)
        entropy = -(logp.exp() * logp).sum(-1)[own]
        logp = logp.gather(1, ids[0, 1:, None])[:, 0][own]
        src = packed.src[packed.src_path == path]
        was, ref, drawn = (torch.from_numpy(x[src]).double() for x in (old, reference, sampler))
        w = was - drawn
        if level is Ratio.TRAJECTORY:
            w = w.sum().expand(len(w))
        w = w.exp()
        w = w.clamp(max=4.0) if by is Correct.TRUNCATE else w * ((w >= 0.25) & (w <= 4.0))
        ratio = (logp - was).exp()
        clipped = ratio.clamp(1 - config.clip_low, 1 + config.clip_high)
        objective = w * torch.minimum(ratio * values[path], clipped * values[path])
        d = logp - ref
        spread = {Kl.K1: d, Kl.K2: d.square() / 2, Kl.K3: (-d).exp() - 1 + d}[kl]
        total = total - (objective - 0.3 * spread + 0.2 * entropy).sum()
    (total / count).backward()
    assert error(ours, gradient(llama64)) < 1e-12


def test_credit_of_some_trees_is_that_of_a_forest_of_them_alone(grow_forest):
    forest = Forest.concatenate([grow_forest(seed, vocab=23) for seed in (1, 2, 3)])
    rewards = np.random.default_rng(1).normal(size=forest.num_paths)
    first, last = 1, forest.num_trees - 2
    part = forest.select(range(first, last + 1))
    own = rewards[forest.trees.path_start[first] : forest.trees.path_start[last + 1]]
    for preset in ("vineppo", "grpo", "spo_tree"):
        expected = credit(part, own, preset)
        actual = credit(forest, rewards, preset).of_trees(forest, np.arange(first, last + 1))
        np.testing.assert_allclose(actual.values, expected.values, atol=1e-12)
        np.testing.assert_array_equal(actual.weights, expected.weights)


def test_a_missing_advantage_is_refused(llama, grow_forest):
    forest = grow_forest(1, vocab=23)
    with pytest.raises(InvalidInputError, match="2 advantages"):
        tree_gradient(llama, pack(forest), np.zeros(2))


def test_a_local_token_count_is_refused(llama, grow_forest):
    forest = grow_forest(1, vocab=23)
    step = TrainStep(llama, LOSS, TEMPERATURE)
    with pytest.raises(InvalidInputError, match="total_weight = 1 "):
        step.backward(pack(forest), random_advantages(forest, 1), 1)


def test_greedy_trajectories_are_refused(llama):
    with pytest.raises(InvalidConfigError, match="temperature"):
        TrainStep(llama, LOSS, 0.0)


@pytest.mark.parametrize("limit", [None, 8])
@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (LossConfig(kl_weight=0.1), r"loss\.kl_weight = 0\.1 needs .*Fixed\(reference=\.\.\)"),
        (
            LossConfig(correction=CorrectionConfig(by=Correct.MASK)),
            r"loss\.correction\.by = mask needs .*Fixed\(old=",
        ),
    ],
)
def test_a_loss_without_what_it_compares_with_is_refused(llama, grow_forest, loss, message, limit):
    forest = grow_forest(1, vocab=23)
    packed, values = pack(forest), random_advantages(forest, 1)
    step = TrainStep(llama, loss, TEMPERATURE, update=UpdateConfig(max_tokens_per_part=limit))
    known = step.fixed_logprobs(packed)
    other = Fixed(old=known) if loss.kl_weight else Fixed(reference=known)
    for fixed in (None, other):
        with pytest.raises(InvalidInputError, match=message):
            step.backward(packed, values, packed.num_trajectory_tokens, fixed)
    assert all(parameter.grad is None for parameter in llama.parameters())
    both = Fixed(old=known, reference=known)
    step.backward(packed, values, packed.num_trajectory_tokens, both)


def test_first_step_check_stops_a_gradient_that_sees_too_few_keys_behind_an_exact_forward(
    llama, small_forest, monkeypatch
):
    exact = Engine(llama, None).exact_forward
    assert exact is not None
    assert first_step_check(llama, small_forest, TEMPERATURE, exact=exact) < 1e-4
    step = TrainStep(llama, LOSS, TEMPERATURE, exact=exact)
    sound = step.fixed_logprobs(pack(small_forest))
    original = PackedContext.attend

    def lacks_a_key(self, *arguments, **options):
        # The last predictors have three tokens before them.
        return original(self, *arguments, **{**options, "sliding_window": 3})

    monkeypatch.setattr(PackedContext, "attend", lacks_a_key)
    np.testing.assert_array_equal(step.fixed_logprobs(pack(small_forest)), sound)
    with pytest.raises(UnsupportedModelError, match=r"cannot be trained on trees$"):
        first_step_check(llama, small_forest, TEMPERATURE, exact=exact)
