"""Decoder layers in one call have the bits of their parts, and run wherever they can."""

import copy
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial

import numpy as np
import pytest
import torch
from storms import differing_values, threads
from tiny_models import MODELS, VOCAB_SIZE

from treepo import core
from treepo.config import (
    Attention,
    Dtype,
    EngineConfig,
    LossConfig,
    Packing,
    SamplingParams,
    SearchConfig,
)
from treepo.engine import Engine
from treepo.engine.fused import Fusion, products
from treepo.engine.fused.whole import WholeLayers
from treepo.engine.kernels import Kernels
from treepo.engine.policy import SamplingPolicy
from treepo.errors import InvalidInputError
from treepo.train.pack import pack
from treepo.train.step import TrainStep

FAMILIES = ["llama", "mistral", "qwen2", "qwen2_window", "qwen3", "smollm3"]
HAS_PANELS = products.uses_panels(torch.float32, Kernels())
IS_FAST = products.packing(torch.bfloat16, Kernels()) is not None
DTYPES = [torch.float32, *([torch.bfloat16] if IS_FAST else [])]
NAMES = {torch.float32: Dtype.FLOAT32, torch.bfloat16: Dtype.BFLOAT16}
OTHER = {torch.float32: Dtype.BFLOAT16, torch.bfloat16: Dtype.FLOAT32}
LEVELS = core.Kernels.levels()
PLACES = [
    (level, dtype)
    for level in LEVELS
    for dtype in DTYPES
    if products.packing(dtype, Kernels(level=level)) is not None
]
SEARCH = SearchConfig(width=5, segment_len=8, max_depth=4)
TEMPERATURE = 0.8
CONFIG = EngineConfig(block_size=4, max_num_batched_tokens=24)


def make(family, dtype=torch.float32, **settings):
    return MODELS[family].make(**settings).to(dtype)


def sample(engine, on_step=None):
    """Trees of three prompts, longer and shorter than a window."""
    rng = np.random.default_rng(4)
    prompts = [rng.integers(0, VOCAB_SIZE, n).astype(np.uint32) for n in (1, 20, 33)]
    params = SamplingParams(temperature=TEMPERATURE)
    return engine.rollout(prompts, SEARCH, params, seed=3, on_step=on_step)


@contextmanager
def whole_layers():
    """Yield a list that gets, for each layer that runs, whether it was computed as a whole."""
    calls = []
    own = WholeLayers.__call__

    def call(self, which, *args):
        output = own(self, which, *args)
        num_layers = len(self.modules[which])
        if output is not None or num_layers == 1:  # Several go on one by one.
            calls.extend([output is not None] * num_layers)
        return output

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(WholeLayers, "__call__", call)
        yield calls


def in_parts(engine):
    """What `sample` returns where no layer is computed as a whole."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(WholeLayers, "__call__", lambda *_: None)
        return sample(engine)


def check_same(forest, expected):
    assert expected.num_tokens > 200
    assert differing_values(forest.columns(), expected.columns()) == {}


def check_whole(engine, expected):
    """Every layer is computed as a whole, where products are the kernels', and no bit differs."""
    with whole_layers() as calls:
        forest = sample(engine)
    policy, num_layers = engine.policy, engine.model.config.num_hidden_layers
    is_whole = products.uses_panels(policy.model.dtype, policy.kernels)
    assert calls == [is_whole] * num_layers * engine.stats.steps
    check_same(forest, expected)


def check_parts(engine):
    """No layer is computed as a whole, and no bit differs."""
    with whole_layers() as calls:
        forest = sample(engine)
    assert set(calls) == {False}
    check_same(forest, in_parts(engine))


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


@contextmanager
def calls_of_kernels(during=None):
    """Yield a list that gets the number of layers of each call of the kernels.

    `during` is called in each, as another thread may act then.
    """
    numbers = []

    class Counted:
        def __init__(self, kernels):
            self._kernels = kernels

        def __getattr__(self, name):
            return getattr(self._kernels, name)

        def decoder_layers(self, layers, *args):
            numbers.append(len(layers))
            if during is not None:
                during()
            return self._kernels.decoder_layers(layers, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Kernels, "native", property(lambda self: Counted(self._kernels)))
        yield numbers


def check_layers_a_call(engine, num_layers, expected):
    """Every call of the kernels computes so many layers, and no bit differs."""
    with calls_of_kernels() as numbers:
        check_whole(engine, expected)
    assert set(numbers) <= {num_layers}
    assert bool(numbers) == products.uses_panels(engine.policy.model.dtype, engine.policy.kernels)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_all_layers_are_one_call(family, dtype):
    engine = Engine(make(family, dtype), None, CONFIG)
    check_layers_a_call(engine, engine.model.config.num_hidden_layers, in_parts(engine))


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("kind", ["forward_hook", "forward_pre_hook"])
def test_hooks_of_layers_act_between_them(kind, index):
    engine = Engine(make("llama"), None, CONFIG)
    plain = sample(engine)
    layer = engine.model.model.layers[index]

    def steer(_module, inputs, output=None):
        return (1.25 * inputs[0],) if output is None else 1.25 * output

    handle = getattr(layer, f"register_{kind}")(steer)
    steered = in_parts(engine)
    assert differing_values(steered.columns(), plain.columns())
    check_layers_a_call(engine, 1, steered)
    handle.remove()
    check_layers_a_call(engine, engine.model.config.num_hidden_layers, plain)


def between_layers(model, change):
    """Have a model do something to the input of its last layer, unseen by hooks."""
    last = model.model.layers[-1]
    own = type(last).__call__

    class Changed(type(last)):
        def __call__(self, hidden_states, *args, **kwargs):
            return own(self, change(hidden_states), *args, **kwargs)

    last.__class__ = Changed


def test_a_model_that_does_something_between_its_layers_has_a_call_for_each():
    model = make("llama")
    plain = sample(Engine(model, None, CONFIG))
    between_layers(model, lambda x: 1.25 * x)
    expected = in_parts(Engine(model, None, CONFIG))
    assert differing_values(expected.columns(), plain.columns())
    check_layers_a_call(Engine(model, None, CONFIG), 1, expected)


def test_a_model_that_only_later_does_something_between_its_layers_has_a_call_for_each():
    model = make("llama")
    engine = Engine(model, None, CONFIG)
    plain = sample(engine)
    between_layers(model, lambda x: 1.25 * x)
    expected = in_parts(engine)
    assert differing_values(expected.columns(), plain.columns())
    check_layers_a_call(engine, 1, expected)


def test_a_norm_that_changes_between_steps_is_followed():
    engine = Engine(make("llama"), None, CONFIG)
    weight = engine.model.model.layers[1].input_layernorm.weight

    def change(stats):
        if stats.steps == 5:
            weight.data = 2 * weight.data

    def changed():
        weight.data = torch.ones_like(weight)
        return sample(engine, change)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(WholeLayers, "__call__", lambda *_: None)
        expected = changed()
    assert differing_values(sample(engine).columns(), expected.columns())
    check_same(changed(), expected)


@pytest.mark.parametrize("no_rope_layers", [[0, 1, 1], [1, 0, 1], [0, 0, 0], [0, 0, 1]])
def test_layers_with_and_without_rotary_embedding_are_one_call(no_rope_layers):
    model = make("smollm3", no_rope_layers=no_rope_layers, num_hidden_layers=3)
    assert [x.self_attn.use_rope for x in model.model.layers] == no_rope_layers
    engine = Engine(model, None, CONFIG)
    check_layers_a_call(engine, 3, in_parts(engine))


@pytest.mark.parametrize("kind", ["forward_hook", "forward_pre_hook"])
def test_hooks_of_all_modules_act_between_layers(kind):
    engine = Engine(make("llama"), None, CONFIG)
    plain = sample(engine)
    layers = list(engine.model.model.layers)

    def steer(module, inputs, output=None):
        if module in layers:
            return (1.25 * inputs[0],) if output is None else 1.25 * output
        return None

    handle = getattr(torch.nn.modules.module, f"register_module_{kind}")(steer)
    try:
        steered = in_parts(engine)
        assert differing_values(steered.columns(), plain.columns())
        check_layers_a_call(engine, 1, steered)
    finally:
        handle.remove()


def test_a_model_that_changes_states_in_place_between_its_layers_has_a_call_for_each():
    model = make("llama")
    plain = sample(Engine(model, None, CONFIG))
    between_layers(model, lambda x: x.mul_(1.25))
    expected = in_parts(Engine(model, None, CONFIG))
    assert differing_values(expected.columns(), plain.columns())
    check_layers_a_call(Engine(model, None, CONFIG), 1, expected)


def test_a_model_that_uses_states_between_its_layers_has_a_call_for_each():
    model = make("llama")
    plain = sample(Engine(model, None, CONFIG))
    states = []
    between_layers(model, lambda x: states.append(x) or x)
    own = model.model.forward

    def forward(*args, **kwargs):
        output = own(*args, **kwargs)
        output.last_hidden_state = output.last_hidden_state + states.pop()
        return output

    model.model.forward = forward
    expected = in_parts(Engine(model, None, CONFIG))
    assert differing_values(expected.columns(), plain.columns())
    check_layers_a_call(Engine(model, None, CONFIG), 1, expected)


def test_a_model_that_later_leaves_out_layers_has_a_call_for_each_other_one():
    model = make("llama")
    engine = Engine(model, None, CONFIG)
    plain = sample(engine)
    model.config.num_hidden_layers = 2
    expected = in_parts(engine)
    assert differing_values(expected.columns(), plain.columns())
    with calls_of_kernels() as numbers:
        check_same(sample(engine), expected)
    assert set(numbers) <= {1}


def test_the_list_of_layers_is_the_models_own_for_whoever_looks_at_it():
    model = make("llama")
    layers, names = list(model.model.layers), list(model.state_dict())

    def look(_stats=None):
        assert type(model.model.layers) is torch.nn.ModuleList
        assert list(model.model.layers) == layers
        assert list(model.state_dict()) == names

    def look_within_a_step():
        assert list(model.state_dict()) == names
        assert len(model.model.layers) == len(layers)
        with ThreadPoolExecutor(1) as pool:  # Also for another thread, meanwhile.
            assert pool.submit(list, model.model.layers).result() == layers
            assert pool.submit(lambda: list(model.model.layers[:])).result() == layers
            assert pool.submit(lambda: model.model.layers[-1]).result() is layers[-1]

    with calls_of_kernels(look_within_a_step) as numbers:
        sample(Engine(model, None, CONFIG), look)
    assert bool(numbers) == HAS_PANELS
    look()


class Steered(torch.nn.Module):
    """A layer whose output is scaled."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, *args, **kwargs):
        return 1.25 * self.layer(*args, **kwargs)


def wrap_a_layer(base):
    base.layers[1] = Steered(base.layers[1])


def replace_the_list(base):
    base.layers = torch.nn.ModuleList([*base.layers[:2], Steered(base.layers[2])])


def replace_the_forward(base):
    own = base.forward

    def forward(*args, **kwargs):
        output = own(*args, **kwargs)
        output.last_hidden_state = 1.25 * output.last_hidden_state
        return output

    base.forward = forward


@pytest.mark.parametrize("change", [wrap_a_layer, replace_the_list, replace_the_forward])
def test_a_model_that_is_rebuilt_after_load_runs_as_it_is(change):
    model = make("llama")
    engine = Engine(model, None, CONFIG)
    plain = sample(engine)
    change(model.model)
    expected = in_parts(engine)
    assert differing_values(expected.columns(), plain.columns())["token_logprob"]
    with calls_of_kernels() as numbers:
        check_same(sample(engine), expected)
    assert set(numbers) <= {1}


def test_a_list_that_is_replaced_within_a_rollout_is_left_as_it_is():
    model = make("llama")
    engine = Engine(model, None, CONFIG)
    expected = sample(engine)
    layers = list(model.model.layers)

    def replace(_stats):
        model.model.layers = torch.nn.ModuleList(list(model.model.layers))

    check_same(sample(engine, replace), expected)
    assert type(model.model.layers) is torch.nn.ModuleList
    assert list(model.model.layers) == layers
    assert "layers" not in vars(model.model)
    copy.deepcopy(model)


def test_hooks_at_load_leave_the_layers_a_call_each():
    # Under them there was no trial: the model may do something between its layers.
    model = make("llama")
    handle = model.model.layers[0].register_forward_hook(lambda *_: None)
    engine = Engine(model, None, CONFIG)
    handle.remove()
    check_layers_a_call(engine, 1, in_parts(engine))


def test_a_model_whose_own_code_wants_all_its_layers_has_a_call_for_each():
    model = make("llama")
    between_layers(model, lambda x: x)
    own = model.model.forward

    def forward(*args, **kwargs):
        assert len(list(model.model.layers)) == 3, "a layer is missing"
        return own(*args, **kwargs)

    model.model.forward = forward
    engine = Engine(model, None, CONFIG)
    check_layers_a_call(engine, 1, in_parts(engine))


@pytest.mark.parametrize("is_within", [True, False])
def test_an_error_leaves_the_model_as_it_was(is_within):
    model = make("llama")
    engine = Engine(model, None, CONFIG)
    expected = sample(engine)

    def fail(_stats=None):
        raise KeyboardInterrupt

    with (
        calls_of_kernels(fail if is_within else None),
        pytest.raises(KeyboardInterrupt),
    ):
        sample(engine, None if is_within and HAS_PANELS else fail)
    assert "layers" not in vars(model.model)
    assert "forward" not in vars(model.model.layers[0])
    check_whole(engine, expected)


def test_engines_sample_from_one_model_on_two_threads():
    model = make("llama")
    engines = [Engine(model, None, CONFIG) for _ in range(2)]
    expected = sample(engines[0])
    with ThreadPoolExecutor(2) as pool:
        for forests in pool.map(lambda engine: [sample(engine) for _ in range(3)], engines):
            for forest in forests:
                check_same(forest, expected)


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


@pytest.mark.parametrize("is_put_on", [True, False])
def test_another_engine_may_begin_or_end_a_rollout_within_a_step(is_put_on):
    model = make("llama")
    engine, other = (Engine(model, None, CONFIG) for _ in range(2))
    expected = in_parts(engine)
    other.policy.follow()
    for others in (other.policy, SamplingPolicy(model, CONFIG.replace(packing=Packing.NEVER))):
        with ExitStack() as stack:
            if not is_put_on:  # The other one's functions are in place when a step begins.
                stack.enter_context(others._overlay.applied())

            def change(stack=stack, others=others):
                if is_put_on:
                    stack.enter_context(others._overlay.applied())
                else:
                    stack.close()

            with calls_of_kernels(change):
                forest = sample(engine, lambda _, stack=stack: stack.close())
        check_same(forest, expected)
