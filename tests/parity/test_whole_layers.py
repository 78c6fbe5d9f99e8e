"""Decoder layers in one call have the bits of their parts, and run wherever they can."""

import copy
from functools import partial

import numpy as np
import pytest
import torch
from storms import differing_values, threads
from tiny_models import MODELS
from wholes import (
    CONFIG,
    DTYPES,
    FAMILIES,
    HAS_PANELS,
    TEMPERATURE,
    by_parts,
    check_parts,
    check_same,
    check_whole,
    in_parts,
    make,
    sample,
    whole_layers,
)

from treepo import core
from treepo.config import (
    Attention,
    Dtype,
    LossConfig,
    Packing,
)
from treepo.engine import Engine
from treepo.engine.fused import Fusion, products
from treepo.engine.kernels import Kernels
from treepo.errors import InvalidInputError
from treepo.train.pack import pack
from treepo.train.step import TrainStep

NAMES = {torch.float32: Dtype.FLOAT32, torch.bfloat16: Dtype.BFLOAT16}
OTHER = {torch.float32: Dtype.BFLOAT16, torch.bfloat16: Dtype.FLOAT32}
LEVELS = core.Kernels.levels()
PLACES = [
    (level, dtype)
    for level in LEVELS
    for dtype in DTYPES
    if products.packing(dtype, Kernels(level=level)) is not None
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_whole_layers_have_the_bits_of_their_parts(family, dtype):
    engine = Engine(make(family, dtype), None, CONFIG)
    expected = in_parts(engine)
    engine.release()
    check_whole(engine, expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_biases_of_every_product_are_added(dtype):
    model = make("llama", dtype, attention_bias=True, mlp_bias=True)
    check_whole(Engine(model, None, CONFIG), in_parts(Engine(model, None, CONFIG)))


@pytest.mark.parametrize("family", sorted(MODELS.keys() - set(FAMILIES)))
def test_layers_of_other_shapes_have_no_whole(family):
    with whole_layers() as calls:
        sample(Engine(make(family), None, CONFIG))
    assert calls == []


@pytest.mark.parametrize(("level", "dtype"), PLACES)
def test_whole_layers_run_at_every_level_that_has_products(level, dtype, monkeypatch):
    kernels = Kernels(level=level)
    monkeypatch.setattr("treepo.engine.policy.Kernels", partial(Kernels, level=level))
    engine = Engine(make("qwen3", dtype), None, CONFIG)
    assert engine.policy.kernels.level == level
    if products.uses_panels(dtype, kernels):
        check_whole(engine, in_parts(engine))
    else:
        check_parts(engine)


@pytest.mark.parametrize("level", [x for x in LEVELS if x not in ("portable", "neon")])
def test_bfloat16_weights_are_packed_and_keep_their_bits_at_every_level(level, monkeypatch):
    monkeypatch.setattr("treepo.engine.policy.Kernels", partial(Kernels, level=level))
    model = make("llama", torch.bfloat16)
    engine = Engine(model, None, CONFIG)
    assert set(engine.fusions) == set(Fusion)
    forest = sample(engine)
    tight = CONFIG.replace(block_size=1, max_num_seqs=3, max_num_batched_tokens=9)
    check_same(sample(Engine(model, None, tight)), forest)
    packed = pack(forest)
    step = TrainStep(model, LossConfig(), TEMPERATURE, exact=engine.exact_forward)
    logprob, _ = step.logprobs(packed)
    np.testing.assert_array_equal(logprob.detach().float().numpy(), packed.old_logprob)


@pytest.mark.parametrize(
    ("dtype", "settings"),
    [
        *((dtype, {"kv_dtype": OTHER[dtype]}) for dtype in DTYPES),
        (torch.float32, {"attention": Attention.TORCH}),
    ],
)
def test_attention_that_converts_or_is_torchs_is_no_part_of_a_whole(dtype, settings):
    check_parts(Engine(make("llama", dtype), None, CONFIG.replace(**settings)))


@pytest.mark.parametrize("rollout_dtype", [NAMES[dtype] for dtype in DTYPES])
def test_a_copy_that_samples_is_computed_by_whole_layers(rollout_dtype):
    config = CONFIG.replace(rollout_dtype=rollout_dtype)
    model = make("llama")
    check_whole(Engine(model, None, config), in_parts(Engine(model, None, config)))


def test_without_packing_there_is_no_whole():
    with whole_layers() as calls:
        sample(Engine(make("llama"), None, CONFIG.replace(packing=Packing.NEVER)))
    assert calls == []


def fresh(engine):
    """What a new engine computes in parts, with the weights that this one has."""
    other = Engine(copy.deepcopy(engine.model), None, engine.config)
    other.policy_version = engine.policy_version
    return in_parts(other)


@pytest.mark.parametrize("announced", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_weights_that_change_in_place_are_followed(family, dtype, announced):
    engine = Engine(make(family, dtype), None, CONFIG)
    before = sample(engine)
    for _ in range(2):
        with torch.no_grad():
            for parameter in engine.model.parameters():
                parameter.mul_(1.1)
        if announced:
            engine.weights_changed()
        expected = fresh(engine)
        assert differing_values(expected.columns(), before.columns())["token_logprob"]
        check_whole(engine, expected)


@pytest.mark.parametrize(
    "name", ["input_layernorm", "post_attention_layernorm", "self_attn.q_norm"]
)
def test_a_norm_with_another_tensor_is_followed(name):
    engine = Engine(make("qwen3"), None, CONFIG)
    before = sample(engine)
    weight = engine.model.model.layers[1].get_submodule(name).weight
    for new in (2 * weight.data, weight.data.flip(0)):
        weight.data = new
        expected = fresh(engine)
        assert differing_values(expected.columns(), before.columns())
        check_whole(engine, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["self_attn.q_proj", "self_attn.o_proj", "mlp.down_proj"])
def test_a_bias_with_another_tensor_is_followed(name, dtype):
    # Weights that are packed anew may lie where they lay, and the bias elsewhere.
    engine = Engine(make("llama", dtype, attention_bias=True, mlp_bias=True), None, CONFIG)
    before = sample(engine)
    bias = engine.model.model.layers[1].get_submodule(name).bias
    for _ in range(3):
        bias.data = -2 * bias.data
        expected = fresh(engine)
        assert differing_values(expected.columns(), before.columns())
        check_whole(engine, expected)


def test_a_norm_whose_weight_has_gaps_is_computed_in_parts():
    engine = Engine(make("qwen3"), None, CONFIG)
    expected = sample(engine)
    norms = [layer.input_layernorm for layer in engine.model.model.layers]
    pairs = [torch.stack([norm.weight.data, -norm.weight.data], 1) for norm in norms]
    for norm, pair in zip(norms, pairs, strict=True):
        norm.weight.data = pair.flatten()[: len(pair)]
    assert differing_values(sample(engine).columns(), expected.columns())
    for norm, pair in zip(norms, pairs, strict=True):  # At the address of the weight before.
        norm.weight.data = pair[:, 0]
    check_parts(engine)
    check_same(sample(engine), expected)


def test_a_layer_whose_weights_are_replaced_is_followed():
    engine = Engine(make("llama"), None, CONFIG)
    sample(engine)
    layer = engine.model.model.layers[0]
    for module in (layer.self_attn.k_proj, layer.self_attn.o_proj, layer.mlp.down_proj):
        module.weight.data = module.weight.data.flip(0)
        check_whole(engine, fresh(engine))


def test_a_pool_that_was_released_is_replaced():
    engine = Engine(make("mistral"), None, CONFIG)
    expected = in_parts(engine)
    for _ in range(2):
        engine.release()
        check_whole(engine, expected)


def test_engines_with_pools_of_their_own_run_one_model():
    model = make("qwen3")
    first = Engine(model, None, CONFIG)
    second = Engine(model, None, CONFIG.replace(block_size=16, max_num_batched_tokens=100))
    expected = in_parts(first)
    for engine in (first, second, first, second):
        check_whole(engine, expected)


def test_an_engine_may_run_the_model_between_the_steps_of_another():
    model = make("qwen3")
    first, second = (Engine(model, None, CONFIG) for _ in range(2))
    expected = in_parts(first)

    def between(stats):
        if stats.steps % 4 == 2:
            check_whole(second, expected)

    check_same(sample(first, between), expected)


def test_threads_that_share_the_work_change_no_bit():
    engine = Engine(make("llama", hidden_size=192, intermediate_size=512), None, CONFIG)
    expected = in_parts(engine)
    with threads(3):
        check_whole(engine, expected)


@pytest.mark.parametrize("with_gradients", [True, False])
def test_training_computes_in_parts_the_bits_of_whole_layers(with_gradients):
    engine = Engine(make("qwen3"), None, CONFIG)
    packed = pack(sample(engine))
    step = TrainStep(engine.model, LossConfig(), TEMPERATURE, exact=engine.exact_forward)
    with whole_layers() as calls, torch.set_grad_enabled(with_gradients):
        logprob, _ = step.logprobs(packed)
    assert logprob.requires_grad == with_gradients
    assert set(calls) == {False}
    np.testing.assert_array_equal(logprob.detach().numpy(), packed.old_logprob)


def test_a_step_under_gradients_is_computed_in_parts(monkeypatch):
    engine = Engine(make("llama"), None, CONFIG)
    expected = in_parts(engine)
    monkeypatch.setattr(torch, "inference_mode", torch.enable_grad)
    with whole_layers() as calls:
        forest = sample(engine)
    assert set(calls) == {False}
    check_same(forest, expected)


def test_steps_of_many_tokens_and_of_one_have_the_same_bits():
    model = make("mistral")
    expected = in_parts(Engine(model, None, CONFIG))
    for config in (CONFIG.replace(max_num_batched_tokens=500), CONFIG.replace(max_num_seqs=1)):
        check_whole(Engine(model, None, config), expected)


@pytest.mark.skipif(not HAS_PANELS, reason="another library packs here")
def test_products_of_another_format_than_the_rest_are_refused_as_in_parts():
    engine = Engine(make("llama"), None, CONFIG)
    for module in engine.model.modules():
        if isinstance(module, torch.nn.Linear):
            module.to(torch.bfloat16)
    with pytest.raises(InvalidInputError, match="one number format"):
        sample(engine)


def test_a_norm_that_changes_between_steps_is_followed():
    engine = Engine(make("llama"), None, CONFIG)
    weight = engine.model.model.layers[1].input_layernorm.weight

    def change(stats):
        if stats.steps == 5:
            weight.data = 2 * weight.data

    def changed():
        weight.data = torch.ones_like(weight)
        return sample(engine, change)

    with by_parts():
        expected = changed()
    assert differing_values(sample(engine).columns(), expected.columns())
    check_same(changed(), expected)


def test_a_first_input_with_gaps_is_computed_in_parts():
    engine = Engine(make("llama"), None, CONFIG)
    expected = in_parts(engine)
    handle = engine.model.model.embed_tokens.register_forward_hook(
        lambda _module, _inputs, output: torch.stack([output, output], -1)[..., 0]
    )
    with whole_layers() as calls:
        forest = sample(engine)
    handle.remove()
    assert False in calls
    check_same(forest, expected)
