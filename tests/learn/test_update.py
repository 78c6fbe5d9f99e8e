"""An optimizer step follows the gradient of its own trees only."""

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from treepo.config import EvalConfig, RewardConfig, SearchConfig, TrainConfig
from treepo.tasks import embedded
from treepo.train.trainer import Trainer

ROWS = [{"prompt": f"{number}*7="} for number in range(10, 20)]


def count_ones(completions, **columns):
    return [text.count("1") / 4 for text in completions]


def tiny_model():
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    special = {"pad_token_id": 16, "eos_token_id": 17, "bos_token_id": None}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=18, **sizes, **heads, **special))


def weights_after_a_step(model, folder):
    config = TrainConfig(
        search=SearchConfig(width=4, segment_len=4, max_depth=2),
        reward=RewardConfig(num_workers=0),
        eval=EvalConfig(num_prompts=0),
        num_steps=1,
        prompts_per_step=3,
        output_dir=str(folder),
    )
    tokenizer = AutoTokenizer.from_pretrained(embedded.MODEL_PATH)
    Trainer(model, tokenizer, count_ones, ROWS, config=config).train()
    return model.state_dict()


def test_a_gradient_that_was_there_before_is_not_followed(tmp_path):
    torch.set_num_threads(1)
    expected = weights_after_a_step(tiny_model(), tmp_path / "clean")
    used = tiny_model()
    for parameter in used.parameters():
        parameter.grad = torch.ones_like(parameter)
    actual = weights_after_a_step(used, tmp_path / "used")
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)
    assert any(not torch.equal(expected[k], v) for k, v in tiny_model().state_dict().items())
