"""The overlay computes what the model computes, follows its weights and leaves it as it was."""

import copy
import importlib
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
import torch
from tiny_models import VOCAB_SIZE
from torch import nn
from torch.nn import functional as F

from treepo.config import Attention, Dtype, EngineConfig, Packing
from treepo.core import Activation
from treepo.engine import Engine, install
from treepo.engine.fused import (
    Fusion,
    PackedLinear,
    build,
    build_overlay,
    can_pack,
    products,
)
from treepo.engine.fused.linear import layers_by_input
from treepo.engine.fused.modules import rotary_function
from treepo.engine.kernels import Kernels
from treepo.errors import InvalidInputError, UnsupportedModelError

ALL = set(Fusion)


def logits_of(engine, prompt):
    forest = engine.generate([prompt], n=1, max_tokens=6)
    return forest.tokens.id, forest.tokens.logprob[len(prompt) :]


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral", "smollm3"])
def test_gated_models_have_every_fusion(make_model, family):
    assert set(Engine(make_model(family), None).fusions) == ALL


@pytest.mark.parametrize("family", ["gemma2", "olmo2", "granite", "ministral3"])
def test_layers_of_another_shape_are_left_alone(make_model, family):
    assert Fusion.DECODER_LAYER not in Engine(make_model(family), None).fusions


def test_an_overlay_leaves_the_model_as_it_was(make_model):
    model = make_model("llama")
    install(model)
    before = {name: dict(vars(module)) for name, module in model.named_modules()}
    overlay = build_overlay(model, Kernels())
    overlay.refresh()
    with overlay.applied():
        assert any("forward" in vars(module) for module in model.modules())
    after = {name: dict(vars(module)) for name, module in model.named_modules()}
    assert before.keys() == after.keys()
    assert all(before[name].keys() == after[name].keys() for name in before)


def test_an_activation_that_layers_share_is_replaced_once_and_put_back(make_model):
    model = make_model("starcoder2")
    model.model.layers[1].mlp.act = model.model.layers[0].mlp.act
    assert Fusion.ACTIVATION in Engine(model, None).fusions
    assert not any("forward" in vars(module) for module in model.modules())


def test_overlays_of_two_models_leave_all_as_it_was_in_whatever_order_they_end(make_model):
    models = [make_model("llama"), make_model("llama")]
    source = importlib.import_module(type(models[0]).__module__)
    own = source.apply_rotary_pos_emb
    overlays = []
    for model in models:
        install(model)
        overlays.append(build_overlay(model, Kernels()))
    first, second = (overlay.applied() for overlay in overlays)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert source.apply_rotary_pos_emb is not own
    assert any("forward" in vars(module) for module in models[1].modules())
    second.__exit__(None, None, None)
    assert source.apply_rotary_pos_emb is own
    assert not any("forward" in vars(x) for model in models for x in model.modules())


def test_a_callback_may_wait_for_a_rollout_in_another_thread(make_model, prompts):
    engine, other = (Engine(make_model("llama"), None) for _ in range(2))
    expected = other.generate(prompts, max_tokens=3)

    def wait(_stats):
        found = pool.submit(other.generate, prompts, max_tokens=3).result(timeout=60)
        np.testing.assert_array_equal(found.tokens.id, expected.tokens.id)

    with ThreadPoolExecutor(1) as pool:
        engine.generate(prompts, max_tokens=2, on_step=wait)


def test_an_error_within_the_block_takes_the_overlay_off(make_model):
    model = make_model("llama")
    install(model)
    overlay = build_overlay(model, Kernels())
    with pytest.raises(RuntimeError, match="stop"), overlay.applied():
        raise RuntimeError("stop")
    assert not any("forward" in vars(module) for module in model.modules())


def test_a_replacement_that_computes_something_else_is_left_out(make_model, monkeypatch):
    monkeypatch.setattr(Kernels, "_gate", lambda self, activation, gate, up: gate * up)
    fusions = set(Engine(make_model("llama"), None).fusions)
    assert fusions == ALL - {Fusion.GATE, Fusion.ACTIVATION, Fusion.DECODER_LAYER}


def test_nothing_is_packed_when_the_config_says_so(make_model):
    assert Engine(make_model("llama"), None, EngineConfig(packing=Packing.NEVER)).fusions == ()


@pytest.mark.parametrize("announced", [True, False])
def test_new_weights_are_sampled_from(make_model, announced):
    model = make_model("llama")
    engine = Engine(model, None)
    prompt = np.arange(9, dtype=np.uint32)
    logits_of(engine, prompt)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.3)
    if announced:
        engine.weights_changed()
    ids, logprobs = logits_of(engine, prompt)
    expected_ids, expected = logits_of(Engine(copy.deepcopy(model), None), prompt)
    assert np.array_equal(ids, expected_ids)
    assert np.array_equal(logprobs, expected)


@pytest.mark.parametrize("packing", Packing)
def test_a_bfloat16_copy_follows_its_masters(make_model, packing):
    if packing is Packing.AUTO and products.packing(torch.bfloat16, Kernels()) is None:
        with pytest.raises(UnsupportedModelError, match="no fast products in bfloat16"):
            Engine(make_model("llama"), None, EngineConfig(rollout_dtype=Dtype.BFLOAT16))
        return
    config = EngineConfig(rollout_dtype=Dtype.BFLOAT16, packing=packing)
    model = make_model("llama")
    engine = Engine(model, None, config)
    prompt = np.arange(9, dtype=np.uint32)
    _, before = logits_of(engine, prompt)
    with torch.no_grad():
        model.lm_head.weight.mul_(4.0)
    ids, after = logits_of(engine, prompt)
    assert model.dtype == torch.float32
    assert not np.array_equal(before, after)
    fresh = Engine(copy.deepcopy(model), None, config)
    expected_ids, expected = logits_of(fresh, prompt)
    assert np.array_equal(ids, expected_ids)
    assert np.array_equal(after, expected)


@pytest.mark.parametrize("attention", [Attention.NATIVE, Attention.TORCH])
def test_a_bfloat16_cache_serves_a_float32_model(make_model, attention):
    model = make_model("llama")
    prompt = np.arange(9, dtype=np.uint32)
    config = EngineConfig(kv_dtype=Dtype.BFLOAT16, attention=attention)
    ids, logprobs = logits_of(Engine(model, None, config), prompt)
    expected_ids, expected = logits_of(Engine(model, None), prompt)
    assert np.array_equal(ids, expected_ids)
    assert np.abs(logprobs - expected).max() < 0.05
    assert not np.array_equal(logprobs, expected)


def test_layers_that_read_one_tensor_are_packed_as_one():
    first, second, third = (nn.Linear(4, 3) for _ in range(3))
    x, y = torch.randn(2, 4), torch.randn(2, 4)
    groups = layers_by_input([(first, x), (second, x), (third, y)])
    assert groups == [[first, second], [third]]


def packings():
    """What packs float32 here: the package's own kernel, and oneDNN where torch has it."""
    own = products.panels(Kernels())
    return [own, products.onednn] if can_pack(torch.float32) else [own]


@pytest.mark.parametrize("pack", packings())
@pytest.mark.parametrize("num_rows", [0, 1, 2, 7])
@pytest.mark.parametrize("bias", [True, False])
def test_packed_layers_have_the_outputs_and_gradients_of_plain_ones(num_rows, bias, pack):
    torch.manual_seed(0)
    layers = [nn.Linear(24, 16, bias=bias), nn.Linear(24, 40, bias=bias)]
    packed = PackedLinear(layers, pack)
    packed.refresh()
    x = torch.randn(num_rows, 24, requires_grad=True)
    parameters = [p for layer in layers for p in layer.parameters()]
    outputs = packed(x)
    expected = [layer(x) for layer in layers]
    for got, wanted in zip(outputs, expected, strict=True):
        torch.testing.assert_close(got, wanted)
    if num_rows:
        got = torch.autograd.grad(sum(y.square().sum() for y in outputs), [x, *parameters])
        wanted = torch.autograd.grad(sum(y.square().sum() for y in expected), [x, *parameters])
        torch.testing.assert_close(got, wanted)


def test_kernels_have_the_gradients_of_the_formulas():
    kernels = Kernels()
    torch.manual_seed(0)
    x = torch.randn(5, 24, requires_grad=True)
    weight = torch.randn(24, requires_grad=True)
    normal = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * (1 + weight)
    got = torch.autograd.grad(kernels.rms_norm(x, weight, 1e-5, 1.0).square().sum(), [x, weight])
    wanted = torch.autograd.grad(normal.square().sum(), [x, weight])
    torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("activation", "reference"),
    [
        (Activation.SILU, F.silu),
        (Activation.GELU, F.gelu),
        (Activation.GELU_TANH, partial(F.gelu, approximate="tanh")),
    ],
)
def test_activations_have_the_values_and_gradients_of_torch(activation, reference):
    torch.manual_seed(0)
    x, slope = 3 * torch.randn(2, 5, 24), torch.randn(2, 5, 24)
    x.requires_grad_()
    got, wanted = Kernels().activate(activation, x), reference(x)
    torch.testing.assert_close(got, wanted)
    assert torch.equal(
        torch.autograd.grad(got, x, slope)[0], torch.autograd.grad(wanted, x, slope)[0]
    )
    for empty in (x[:0], x[..., :0]):
        assert Kernels().activate(activation, empty).shape == empty.shape


@pytest.fixture
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("family", ["phi3", "starcoder2"])
def test_a_wide_activation_has_the_same_bits_alone_and_in_a_batch(
    make_model, three_threads, family
):
    engine = Engine(make_model(family, intermediate_size=8192, num_hidden_layers=4), None)
    prompts = np.random.default_rng(0).integers(0, VOCAB_SIZE, (10, 7)).astype(np.uint32)
    together = engine.generate(prompts, max_tokens=12)
    for key in (0, 3, 6, 9):
        alone = engine.generate(prompts[key : key + 1], max_tokens=12, keys=[key])
        for name, column in alone.columns().items():
            np.testing.assert_array_equal(together.select([key]).columns()[name], column, name)


def test_kernels_refuse_mixed_number_formats():
    kernels = Kernels()
    x, weight = torch.ones(2, 8), torch.ones(8, dtype=torch.bfloat16)
    with torch.no_grad(), pytest.raises(InvalidInputError, match="bfloat16"):
        kernels.rms_norm(x, weight, 1e-6, 0.0)
    with torch.no_grad(), pytest.raises(InvalidInputError, match="bfloat16"):
        kernels.gate(Activation.SILU, x, x.bfloat16())


def test_kernels_refuse_shapes_that_do_not_fit_together():
    kernels = Kernels(1)
    x = torch.ones(4, 8)
    packed = kernels.pack(torch.ones(3, 8), lambda *_: None)
    heads = torch.ones(4, 2, 8)
    for call in (
        lambda: kernels.gate(Activation.SILU, x, x[:, :1]),
        lambda: kernels.rms_norm(x, torch.ones(1), 1e-6, 0.0),
        lambda: kernels.linear(x, packed, 3, torch.ones(2)),
        lambda: kernels.linear(x, packed, 3, None, torch.ones(1, 3)),
        lambda: kernels.attend(None, None, heads, heads[:3], heads[:3]),
        lambda: kernels.attend(None, None, heads, heads, heads[:, :1]),
    ):
        with pytest.raises(InvalidInputError, match="do not fit together"):
            call()
    query, cos = torch.ones(1, 2, 4, 8), torch.ones(1, 4, 8)
    assert kernels.can_rotate(query, query, cos, cos)
    assert not kernels.can_rotate(query, query, cos, cos[:, :, :4])
    assert not kernels.can_rotate(query, query[:, :, :3], cos, cos)
    assert not kernels.can_rotate(query, query, cos, cos.double())


@pytest.mark.parametrize(("family", "is_by_the_kernel"), [("llama", True), ("glm", False)])
def test_a_rotary_function_that_turns_neighbours_is_left_alone(family, is_by_the_kernel):
    source = f"transformers.models.{family}.modeling_{family}"
    importlib.import_module(source)
    assert (rotary_function(source, Kernels(1)) is not None) == is_by_the_kernel


def test_sinks_that_a_model_makes_anew_at_each_call_are_no_obstacle(make_model, monkeypatch):
    attend = build._Causal.attend

    def with_new_sinks(self, *states, sinks, **options):
        return attend(self, *states, sinks=sinks.clone(), **options)

    monkeypatch.setattr(build._Causal, "attend", with_new_sinks)
    assert Fusion.PACKED_LINEAR in Engine(make_model("gpt_oss"), None).fusions


@pytest.mark.parametrize("pack", packings())
def test_a_row_has_the_same_bits_in_every_batch(pack):
    torch.manual_seed(0)
    weight, bias = torch.randn(200, 96), torch.randn(200)
    rows, residual = torch.randn(70, 96), torch.randn(70, 200)
    packed = pack(weight, False)
    together = packed.product(rows, bias, residual)
    for size in (1, 2, 3, 5, 8, 33):
        for first in (0, 37):
            part = slice(first, first + size)
            alone = packed.product(rows[part], bias, residual[part])
            assert torch.equal(alone, together[part]), (size, first)


def test_rows_of_another_width_are_refused():
    kernels = Kernels()
    packed = kernels.pack(torch.randn(8, 24), lambda *_: None)
    with pytest.raises(InvalidInputError, match="8 outputs and 23 inputs"):
        kernels.linear(torch.randn(2, 23), packed, 8)


@pytest.fixture(params=["openmp", "parked"])
def kernels(request, monkeypatch):
    """Three threads: torch's own, and a pool."""
    if request.param == "parked":
        monkeypatch.setattr("treepo.engine.kernels.gomp_parallel", lambda: None)
    return Kernels(3)


def test_threads_that_are_awake_compute_the_same(kernels):
    x, weight = torch.randn(40, 96), torch.randn(512, 96)
    scale = torch.ones(512)

    def compute():
        y = kernels.linear(x, packed, 512)
        return kernels.rms_norm(kernels.gate(Activation.SILU, y, y), scale, 1e-5, 0.0)

    packed = kernels.pack(weight, lambda address, size: None)
    expected = compute()
    assert torch.equal(kernels.awake(compute), expected)
    assert torch.equal(kernels.awake(lambda: kernels.awake(compute)), expected)


def test_two_callers_may_keep_the_same_threads_awake(kernels):
    asleep, inside, outside = kernels.native, threading.Event(), threading.Event()

    def stay():
        inside.set()
        assert outside.wait(10)
        return kernels.native

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(kernels.awake, stay)
        assert inside.wait(10)
        other = kernels.awake(lambda: kernels.native)
        outside.set()
        assert first.result() is other is not asleep
    assert kernels.native is asleep


def test_an_error_while_threads_are_awake_sends_them_to_sleep(kernels):
    asleep = kernels.native
    with pytest.raises(KeyError, match="stop"):
        kernels.awake(lambda: {}["stop"])
    assert kernels.native is asleep
    with pytest.raises(InvalidInputError, match="one number format"):
        kernels.awake(
            lambda: kernels.gate(Activation.SILU, torch.ones(2, 2), torch.ones(2, 2).bfloat16())
        )
    assert kernels.awake(lambda: 7) == 7


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "mixtral", "gpt2"])
def test_threads_stay_awake_where_kernels_compute_every_layer(make_model, family):
    policy = Engine(make_model(family), None).policy
    has_panels = products.uses_panels(torch.float32, policy.kernels)
    assert policy.is_all_kernels == (has_panels and family in ("llama", "qwen3"))
    plain = EngineConfig(packing=Packing.NEVER)
    assert not Engine(make_model(family), None, plain).policy.is_all_kernels
