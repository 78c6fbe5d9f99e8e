"""All decoder layers of a model in one call: where nothing happens between them, and only there."""

import copy
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import pytest
import torch
from storms import differing_values
from wholes import (
    CONFIG,
    DTYPES,
    FAMILIES,
    HAS_PANELS,
    by_modules,
    check_same,
    check_whole,
    in_parts,
    make,
    sample,
)

from treepo.config import Packing
from treepo.engine import Engine
from treepo.engine.fused import products
from treepo.engine.kernels import Kernels
from treepo.engine.policy import SamplingPolicy


@pytest.fixture(autouse=True)
def only_modules():
    with by_modules():
        yield


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


@pytest.mark.parametrize("change", [lambda x: 1.25 * x, lambda x: x.mul_(1.25)])
def test_a_model_that_does_something_between_its_layers_has_a_call_for_each(change):
    model = make("llama")
    plain = sample(Engine(model, None, CONFIG))
    between_layers(model, change)
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
