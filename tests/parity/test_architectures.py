"""The table of tiny models holds the shapes and features that attention has to get right."""

import pytest
import torch
from tiny_models import MODELS, WINDOW

from treepo.engine import plain_attention, probe

TOKEN_IDS = torch.arange(20)[None] * 7


@pytest.fixture(scope="module")
def layers():
    """Every attention layer of every family."""
    return [layer for tiny in MODELS.values() for layer in probe(tiny.make()).layers]


def test_the_table_holds_every_ratio_of_heads(layers):
    assert {layer.num_heads // layer.num_kv_heads for layer in layers} >= {1, 2, 3, 4}
    assert {layer.num_kv_heads for layer in layers} >= {1, 2, 3}


def test_the_table_holds_head_widths_that_fill_no_vector(layers):
    assert {layer.key_dim for layer in layers} >= {8, 12, 16, 24}


def test_the_table_holds_every_feature_alone_and_beside_others(layers):
    features = {(x.sliding_window is not None, x.softcap is not None, x.has_sinks) for x in layers}
    assert features >= {
        (False, False, False),
        (True, False, False),
        (False, True, False),
        (True, True, False),
        (False, False, True),
        (True, False, True),
    }


@pytest.mark.parametrize(
    "family",
    ["qwen2_window", "mistral", "gemma2", "gemma3", "cohere2", "starcoder2", "gpt_oss"],
)
def test_a_window_changes_the_logits_of_its_family(make_model, family):
    model = make_model(family)
    wide = make_model(family, sliding_window=100)
    with torch.no_grad(), plain_attention(model), plain_attention(wide):
        near, far = (m(TOKEN_IDS, use_cache=False).logits[0] for m in (model, wide))
    torch.testing.assert_close(near[:WINDOW], far[:WINDOW])
    assert (near[-1] - far[-1]).abs().max() > 0.05 * far.abs().max()
