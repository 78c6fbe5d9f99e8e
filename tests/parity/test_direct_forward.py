"""A model whose forward is nothing but kernels is one call of them, and only such a model."""

import copy
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from storms import differing_values
from wholes import (
    CONFIG,
    DTYPES,
    FAMILIES,
    HAS_PANELS,
    SEARCH,
    by_modules,
    check_same,
    check_whole,
    direct_calls,
    in_parts,
    make,
    sample,
)

from treepo.config import Activations, Dtype, Packing, SamplingParams, UpdateConfig
from treepo.engine import Engine
from treepo.engine.fused import products
from treepo.engine.kernels import Kernels
from treepo.engine.policy import SamplingPolicy
from treepo.errors import InvalidInputError
from treepo.train.forward import Forward

TIES = [False, True]


def check_direct(engine, expected, *, is_direct=True):
    """Each step is one call of the kernels, or none is; no bit differs."""
    with direct_calls() as calls:
        forest = sample(engine)
    is_direct = is_direct and products.uses_panels(engine.policy.model.dtype, Kernels())
    assert sum(calls) == (engine.stats.steps if is_direct else 0)
    check_same(forest, expected)


def check_model(engine, expected):
    """The model's own forward runs in each step."""
    check_direct(engine, expected, is_direct=False)


def fresh(engine):
    """What a new engine computes in parts with this one's model."""
    other = Engine(copy.deepcopy(engine.model), None, engine.config)
    other.policy_version = engine.policy_version
    return in_parts(other)


@pytest.mark.parametrize("tied", TIES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_is_one_call(family, dtype, tied):
    engine = Engine(make(family, dtype, tie_word_embeddings=tied), None, CONFIG)
    check_direct(engine, in_parts(engine))
    with by_modules():
        check_model(engine, in_parts(engine))


def test_a_copy_that_samples_is_one_call():
    engine = Engine(make("llama"), None, CONFIG.replace(rollout_dtype=Dtype.FLOAT32))
    check_direct(engine, in_parts(engine))
    dtypes = [Dtype.BFLOAT16] if torch.bfloat16 in DTYPES else []
    for dtype in dtypes:
        engine = Engine(make("llama"), None, CONFIG.replace(rollout_dtype=dtype))
        check_direct(engine, in_parts(engine))


def test_steps_of_any_size_are_one_call():
    model = make("qwen3")
    expected = in_parts(Engine(model, None, CONFIG))
    for config in (
        CONFIG.replace(max_num_batched_tokens=500),
        CONFIG.replace(max_num_batched_tokens=5),
        CONFIG.replace(max_num_seqs=1),
    ):
        check_direct(Engine(model, None, config), expected)


def test_a_head_with_a_bias_is_one_call():
    model = make("llama", tie_word_embeddings=False)
    model.lm_head.bias = torch.nn.Parameter(torch.linspace(-2, 2, model.lm_head.out_features))
    engine = Engine(model, None, CONFIG)
    check_direct(engine, in_parts(engine))


class Scaled(torch.nn.Embedding):
    """Embeddings as some families scale them."""

    def forward(self, tokens):
        return 3.0 * super().forward(tokens)


def scaled_embedding(model):
    model.model.embed_tokens.__class__ = Scaled


def scaled_states(model):
    own = model.model.forward

    def forward(*args, **kwargs):
        output = own(*args, **kwargs)
        output.last_hidden_state = 1.25 * output.last_hidden_state
        return output

    model.model.forward = forward


def scaled_in_place(model):
    own = model.model.forward

    def forward(input_ids, **kwargs):
        embedding = model.get_input_embeddings()(input_ids)
        return own(**{**kwargs, "inputs_embeds": embedding.mul_(2.0)})

    model.model.forward = forward


def capped_logits(model):
    own = model.forward

    def forward(*args, **kwargs):
        output = own(*args, **kwargs)
        output.logits = 2 * torch.tanh(output.logits / 2)
        return output

    model.forward = forward


def another_norm(model):
    model.model.norm = torch.nn.LayerNorm(model.config.hidden_size)


CHANGES = [scaled_embedding, scaled_states, scaled_in_place, capped_logits, another_norm]


@pytest.mark.parametrize("change", CHANGES)
def test_a_model_that_does_something_else_runs_as_it_is(change):
    model = make("llama")
    plain = in_parts(Engine(model, None, CONFIG))
    change(model)
    expected = in_parts(Engine(model, None, CONFIG))
    assert differing_values(expected.columns(), plain.columns())["token_logprob"]
    check_model(Engine(model, None, CONFIG), expected)


def test_a_lookup_that_changes_its_weight_is_left_to_the_model():
    model = make("llama", tie_word_embeddings=False)
    model.model.embed_tokens.max_norm = 0.1
    engine = Engine(model, None, CONFIG)
    with direct_calls() as calls:
        sample(engine)
    assert not any(calls)


def test_a_lookup_that_later_changes_its_weight_is_left_to_the_model():
    engine = Engine(make("llama", tie_word_embeddings=False), None, CONFIG)
    plain = sample(engine)
    engine.model.model.embed_tokens.max_norm = 0.1
    assert differing_values(sample(engine).columns(), plain.columns())["token_logprob"]
    check_model(engine, in_parts(engine))


def test_a_weight_of_the_model_itself_is_left_to_it():
    model = make("llama")
    expected = in_parts(Engine(model, None, CONFIG))
    model.register_parameter("scale", torch.nn.Parameter(torch.ones(())))
    check_model(Engine(model, None, CONFIG), expected)


@pytest.mark.parametrize("difference", [-3, 5])
@pytest.mark.parametrize("is_late", [False, True])
def test_a_head_whose_weight_has_other_rows_than_it_says(difference, is_late):
    model = make("llama", tie_word_embeddings=False)
    vocab_size = model.lm_head.out_features
    num_rows = vocab_size + difference
    early = Engine(model, None, CONFIG)
    sample(early)
    model.lm_head.weight = torch.nn.Parameter(torch.randn(num_rows, model.lm_head.in_features) / 8)
    bias = torch.zeros(num_rows)
    bias[vocab_size:] = -1e4  # No embedding has such an id.
    model.lm_head.bias = torch.nn.Parameter(bias)
    engine = early if is_late else Engine(model, None, CONFIG)
    with by_modules():
        expected = sample(engine)
    check_same(sample(engine), expected)
    assert expected.columns()["token_id"].max() < num_rows


@pytest.mark.parametrize("change", CHANGES)
def test_a_model_that_later_does_something_else_runs_as_it_is(change):
    model = make("llama")
    engine = Engine(model, None, CONFIG)
    plain = sample(engine)
    change(model)
    expected = in_parts(engine)
    assert differing_values(expected.columns(), plain.columns())["token_logprob"]
    check_model(engine, expected)


NAMES = ["", "model", "model.embed_tokens", "model.layers.1", "model.norm", "lm_head"]


@pytest.mark.parametrize("kind", ["forward_hook", "forward_pre_hook"])
@pytest.mark.parametrize("name", NAMES)
def test_hooks_act(name, kind):
    engine = Engine(make("llama", tie_word_embeddings=False), None, CONFIG)
    plain = in_parts(engine)
    seen = []
    handle = getattr(engine.model.get_submodule(name), f"register_{kind}")(
        lambda *_: seen.append(0)
    )
    check_model(engine, plain)
    assert len(seen) == engine.stats.steps
    handle.remove()
    check_direct(engine, plain)


def test_hooks_of_the_rotary_embedding_act():
    engine = Engine(make("llama"), None, CONFIG)
    plain = in_parts(engine)
    rotary = engine.model.model.rotary_emb
    handle = rotary.register_forward_hook(lambda _m, _x, y: (1.5 * y[0], y[1]))
    expected = in_parts(engine)
    assert differing_values(expected.columns(), plain.columns())
    check_model(engine, expected)
    handle.remove()
    check_direct(engine, plain)


@pytest.mark.parametrize("kind", ["forward_hook", "forward_pre_hook"])
def test_hooks_of_all_modules_act(kind):
    engine = Engine(make("llama"), None, CONFIG)
    plain = in_parts(engine)
    seen = []
    register = getattr(torch.nn.modules.module, f"register_module_{kind}")
    handle = register(lambda module, *_: seen.append(module))
    try:
        check_model(engine, plain)
    finally:
        handle.remove()
    assert {engine.model, *engine.model.model.layers} <= set(seen)
    check_direct(engine, plain)


def replace_rotary(model):
    model.model.rotary_emb = type(model.model.rotary_emb)(
        type(model.config)(**{**model.config.to_dict(), "rope_parameters": OTHER_ANGLES})
    )


OTHER_ANGLES = {"rope_type": "default", "rope_theta": 100.0}


def replace_norm(model):
    model.model.norm = copy.deepcopy(model.model.norm)
    model.model.norm.weight.data *= 2


def replace_embedding(model):
    weight = 2 * model.model.embed_tokens.weight.detach()
    model.model.embed_tokens = torch.nn.Embedding.from_pretrained(weight)


def replace_head(model):
    model.lm_head = copy.deepcopy(model.lm_head)
    model.lm_head.weight.data *= 2


@pytest.mark.parametrize("change", [replace_rotary, replace_norm, replace_embedding, replace_head])
def test_a_module_that_is_replaced_after_load_is_not_taken_for_the_old_one(change):
    engine = Engine(make("llama", tie_word_embeddings=False), None, CONFIG)
    plain = sample(engine)
    change(engine.model)
    expected = fresh(engine)
    assert differing_values(expected.columns(), plain.columns())["token_logprob"]
    check_model(engine, in_parts(engine))
    new = Engine(engine.model, None, CONFIG)
    new.policy_version = engine.policy_version
    check_direct(new, expected)


@pytest.mark.parametrize("is_new", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["model.embed_tokens", "model.norm", "lm_head"])
def test_weights_that_change_are_followed(name, dtype, is_new):
    engine = Engine(make("llama", dtype, tie_word_embeddings=False), None, CONFIG)
    before = sample(engine)
    weight = engine.model.get_submodule(name).weight
    with torch.no_grad():
        for _ in range(2):
            if is_new:
                weight.data = 1.5 * weight.data
            else:
                weight.mul_(1.5)
            expected = fresh(engine)
            assert differing_values(expected.columns(), before.columns())["token_logprob"]
            check_direct(engine, expected)


@pytest.mark.parametrize("name", ["model.embed_tokens", "model.norm"])
def test_weights_with_gaps_are_left_to_the_model(name):
    engine = Engine(make("llama", tie_word_embeddings=False), None, CONFIG)
    expected = sample(engine)
    weight = engine.model.get_submodule(name).weight
    pairs = torch.stack([weight.data, -weight.data], -1)
    weight.data = pairs[..., 0]
    check_model(engine, expected)
    weight.data = pairs[..., 0].contiguous()
    check_direct(engine, expected)


def test_a_weight_that_is_replaced_between_steps_is_followed():
    engine = Engine(make("llama", tie_word_embeddings=False), None, CONFIG)
    weight = engine.model.model.embed_tokens.weight
    own = weight.data

    def changed():
        weight.data = own
        return sample(engine, lambda stats: stats.steps == 5 and weight.set_(2 * own))

    with torch.no_grad(), by_modules():
        expected = changed()
    assert differing_values(sample(engine).columns(), expected.columns())
    with torch.no_grad():
        check_same(changed(), expected)


def replace_inner_model(model):
    model.model = copy.deepcopy(model.model)
    model.model.norm.weight.data *= 2


@pytest.mark.parametrize("is_copy", [False, True])
def test_an_inner_model_that_is_replaced_after_load_is_not_taken_for_the_old_one(is_copy):
    config = CONFIG.replace(rollout_dtype=Dtype.FLOAT32) if is_copy else CONFIG
    engine = Engine(make("llama", tie_word_embeddings=False), None, config)
    plain = sample(engine)
    replace_inner_model(engine.policy.model)
    assert differing_values(sample(engine).columns(), plain.columns())["token_logprob"]
    with by_modules():
        expected = sample(engine)
    check_model(engine, expected)


def leave_out_layers(model):
    model.config.num_hidden_layers = 2


def leave_out_layers_inside(model):
    model.model.config = copy.deepcopy(model.model.config)
    model.model.config.num_hidden_layers = 2


@pytest.mark.parametrize("change", [leave_out_layers, leave_out_layers_inside])
def test_settings_that_leave_out_layers_act(change):
    engine = Engine(make("llama"), None, CONFIG)
    plain = sample(engine)
    change(engine.model)
    assert differing_values(sample(engine).columns(), plain.columns())["token_logprob"]
    check_model(engine, in_parts(engine))


@pytest.mark.parametrize("change", [leave_out_layers, leave_out_layers_inside])
def test_settings_that_change_within_a_rollout_act(change):
    engine = Engine(make("llama"), None, CONFIG)
    own, inner = copy.deepcopy(engine.model.config), engine.model.model.config

    def changed():
        engine.model.config = engine.model.model.config = inner
        vars(inner).update(vars(copy.deepcopy(own)))
        return sample(engine, lambda stats: stats.steps == 5 and change(engine.model))

    with by_modules():
        expected = changed()
    assert differing_values(sample(engine).columns(), expected.columns())
    check_same(changed(), expected)


def set_a_switch(model, _folder):
    model.model.a_switch_of_its_own = True


def save(model, folder):
    model.save_pretrained(folder)


def checkpoint_gradients(model, _folder):
    Forward(model, 1.0, UpdateConfig(activations=Activations.RECOMPUTE), None)


@pytest.mark.parametrize("change", [set_a_switch, save, checkpoint_gradients])
def test_settings_without_a_meaning_leave_it_at_one_call(change, tmp_path):
    engine = Engine(make("llama"), None, CONFIG)
    expected = in_parts(engine)
    change(engine.model, tmp_path)
    for _ in range(2):
        check_direct(engine, expected)


class NeverEqual:
    """Of a configuration, with more than one truth."""

    def __eq__(self, other):
        raise ValueError("several truths")

    __hash__ = None


class NeverCopied(NeverEqual):
    def __deepcopy__(self, memo):
        raise TypeError("one of its kind")


@pytest.mark.parametrize("kind", [NeverEqual, NeverCopied])
def test_a_configuration_that_cannot_be_compared_is_no_obstacle(kind):
    model = make("llama")
    expected = in_parts(Engine(model, None, CONFIG))
    late = Engine(model, None, CONFIG)
    for _ in range(2):
        model.config.odd = kind()
        for engine in (late, Engine(model, None, CONFIG)):
            check_direct(engine, expected)


def test_engines_take_turns_on_one_model_and_on_two_threads():
    model = make("llama")
    engines = [Engine(model, None, CONFIG) for _ in range(2)]
    expected = in_parts(engines[0])
    for engine in (*engines, *engines):
        check_direct(engine, expected)
    with ThreadPoolExecutor(2) as pool:
        for forests in pool.map(lambda engine: [sample(engine) for _ in range(3)], engines):
            for forest in forests:
                check_same(forest, expected)


def test_another_engines_functions_may_be_in_force():
    model = make("llama")
    engine = Engine(model, None, CONFIG)
    expected = in_parts(engine)
    others = SamplingPolicy(model, CONFIG.replace(packing=Packing.NEVER))
    others.follow()
    with others._overlay.applied():
        check_whole(engine, expected)
    check_direct(engine, expected)


@pytest.mark.skipif(not HAS_PANELS, reason="another library packs here")
def test_an_id_outside_the_vocabulary_is_refused():
    engine = Engine(make("llama"), None, CONFIG)
    vocab_size = engine.model.config.vocab_size
    prompt = np.array([1, vocab_size], dtype=np.uint32)
    with pytest.raises((InvalidInputError, IndexError)):
        engine.rollout([prompt], SEARCH, SamplingParams(), seed=0)
    check_direct(engine, in_parts(engine))


def test_a_model_in_training_mode_is_sampled_from_evaluating():
    engine = Engine(make("llama"), None, CONFIG)
    expected = sample(engine)
    engine.model.train()
    check_direct(engine, expected)
    assert all(module.training for module in engine.model.modules())
