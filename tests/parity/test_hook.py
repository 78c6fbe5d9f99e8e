"""One attention function serves every model, and models it cannot serve are refused by name."""

import pytest
import torch
from transformers import (
    BartConfig,
    BartForCausalLM,
    BertConfig,
    BertLMHeadModel,
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    JetMoeConfig,
    JetMoeForCausalLM,
    Llama4ForCausalLM,
    Llama4TextConfig,
    MambaConfig,
    MambaForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    Qwen3NextConfig,
    Qwen3NextForCausalLM,
    RobertaConfig,
    RobertaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from treepo.config import Attention, EngineConfig, SamplingParams
from treepo.engine import Engine, install, plain_attention, probe
from treepo.engine.attention import Feature, TorchBackend
from treepo.errors import UnsupportedModelError


def mamba():
    return MambaForCausalLM(MambaConfig(vocab_size=32, hidden_size=16, num_hidden_layers=2))


def bloom():
    return BloomForCausalLM(BloomConfig(vocab_size=32, hidden_size=16, n_layer=2, n_head=2))


def bert():
    sizes = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    return BertLMHeadModel(BertConfig(**sizes, num_attention_heads=2))


def t5():
    return T5ForConditionalGeneration(
        T5Config(vocab_size=32, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    )


def qwen3_next():
    sizes = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 4}
    return Qwen3NextForCausalLM(Qwen3NextConfig(**sizes, num_experts=2, num_experts_per_tok=1))


def llama4():
    config = Llama4TextConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=16,
        intermediate_size_mlp=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        num_local_experts=2,
    )
    return Llama4ForCausalLM(config)


def bart_decoder():
    sides = ("encoder", "decoder")
    sizes = {f"{side}_layers": 1 for side in sides} | {f"{side}_ffn_dim": 16 for side in sides}
    sizes |= {f"{side}_attention_heads": 2 for side in sides}
    return BartForCausalLM(
        BartConfig(vocab_size=32, d_model=16, max_position_embeddings=32, **sizes)
    )


def roberta():
    config = RobertaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=32,
        is_decoder=True,
    )
    return RobertaForCausalLM(config)


def qwen2_moe(**settings):
    sizes = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    experts = {
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
        "num_experts": 2,
        "num_experts_per_tok": 1,
    }
    config = Qwen2MoeConfig(**sizes, **heads, **experts, **settings)
    return Qwen2MoeForCausalLM(config)


def test_probe_finds_the_shapes_of_every_layer(make_model):
    shapes = probe(make_model("gemma2"))
    assert [layer.sliding_window for layer in shapes.layers] == [7, None, 7]
    assert all(layer.softcap == 5.0 for layer in shapes.layers)
    assert all((x.num_heads, x.num_kv_heads, x.key_dim) == (6, 2, 16) for x in shapes.layers)
    assert shapes.dtype == torch.float32


def test_probe_sees_sinks(make_model):
    assert all(layer.has_sinks for layer in probe(make_model("gpt_oss")).layers)


def test_a_model_without_k_proj_is_served():
    torch.manual_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=97,
            n_embd=32,
            n_layer=2,
            n_head=4,
            n_positions=64,
            initializer_range=0.5,
            bos_token_id=None,
            eos_token_id=None,
        )
    ).eval()
    forest = Engine(model, None, EngineConfig(block_size=4)).generate(
        [[3, 1, 4]], max_tokens=20, sampling=SamplingParams(temperature=0.0)
    )
    with plain_attention(model):
        expected = model.generate(torch.tensor([[3, 1, 4]]), max_new_tokens=20, do_sample=False)
    assert forest.token_ids(0).tolist() == expected[0].tolist()


@pytest.mark.parametrize("make", [mamba, bloom, bert, t5, qwen3_next, llama4])
def test_an_unsupported_model_is_refused_by_name(make):
    model = make()
    with pytest.raises(UnsupportedModelError, match=type(model).__name__):
        Engine(model, None)


COUNTS_POSITIONS = pytest.mark.parametrize("make", [bart_decoder, roberta])


@COUNTS_POSITIONS
def test_a_model_that_counts_positions_itself_is_refused(make):
    model = make()
    with pytest.raises(UnsupportedModelError, match=f"{type(model).__name__} gives logits .*order"):
        Engine(model, None)


@COUNTS_POSITIONS
def test_a_model_that_an_engine_refused_computes_as_before(make):
    model = make().eval()
    before = model(torch.tensor([[5, 6, 7]]), use_cache=False).logits
    with pytest.raises(UnsupportedModelError):
        Engine(model, None)
    torch.testing.assert_close(model(torch.tensor([[5, 6, 7]]), use_cache=False).logits, before)


def test_a_window_that_only_the_models_own_mask_knows_is_refused():
    model = qwen2_moe(use_sliding_window=True, sliding_window=7)
    with pytest.raises(UnsupportedModelError, match=r"Qwen2Moe.* the sliding window of layer 0"):
        Engine(model, None)


def test_a_family_whose_windows_are_refused_is_served_without_one():
    forest = Engine(qwen2_moe(), None).generate([[3, 1, 4]], n=2, max_tokens=12)
    assert [len(forest.completion_ids(path)) for path in range(2)] == [12, 12]


def test_a_model_that_views_attention_as_rows_is_served():
    sizes = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2}
    heads = {"num_key_value_heads": 2, "kv_channels": 8, "max_position_embeddings": 32}
    config = JetMoeConfig(**sizes, **heads, num_local_experts=4, num_experts_per_tok=2)
    forest = Engine(JetMoeForCausalLM(config), None).generate([[3, 1, 4]], max_tokens=5)
    assert len(forest.completion_ids(0)) == 5


def test_a_quantised_model_is_refused(make_model):
    model = make_model("llama")
    model.config.quantization_config = {"quant_method": "gptq"}
    with pytest.raises(UnsupportedModelError, match="LlamaForCausalLM has quantised weights"):
        probe(model)


def test_a_layer_that_skips_the_hook_is_found(make_model):
    model = make_model("llama")
    attention = model.model.layers[1].self_attn
    attention.forward = lambda hidden_states, **kwargs: (hidden_states, None)
    with pytest.raises(UnsupportedModelError, match=r"3 layers .* layers \[0, 2\]"):
        probe(model)


def test_a_model_that_is_refused_computes_as_before(make_model):
    model = make_model("llama")
    model.model.layers[1].self_attn.layer_idx = 7
    before = model(torch.tensor([[1, 2, 3]]), use_cache=False).logits
    with pytest.raises(UnsupportedModelError):
        Engine(model, None)
    torch.testing.assert_close(model(torch.tensor([[1, 2, 3]]), use_cache=False).logits, before)


def test_a_back_end_without_a_feature_refuses_the_layer_that_asks_for_it(make_model, monkeypatch):
    monkeypatch.setattr(TorchBackend, "features", frozenset({Feature.SLIDING_WINDOW}))
    engine = Engine(make_model("gpt_oss"), None, EngineConfig(attention=Attention.TORCH))
    with pytest.raises(UnsupportedModelError, match="layer 0 uses sinks, which the torch"):
        engine.generate([[1, 2]], max_tokens=2)


def test_a_plain_forward_of_a_hooked_model_says_what_to_do(make_model):
    model = make_model("llama")
    install(model)
    with pytest.raises(UnsupportedModelError, match="plain_attention"):
        model(torch.tensor([[1, 2, 3]]))


def test_plain_attention_restores_the_hook(make_model):
    model = make_model("llama")
    before = model(torch.tensor([[1, 2, 3]])).logits
    install(model)
    with plain_attention(model, "sdpa"):
        inside = model(torch.tensor([[1, 2, 3]])).logits
    torch.testing.assert_close(inside, before)
    assert model.config._attn_implementation == "treepo"


def test_attention_dropout_is_refused(make_model):
    model = make_model("llama", attention_dropout=0.1).train()
    install(model)
    with pytest.raises(UnsupportedModelError, match=r"dropout 0\.1"):
        model(torch.tensor([[1]]), treepo=object())
