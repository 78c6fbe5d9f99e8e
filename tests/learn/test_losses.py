import math

import pytest
import torch
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

from treepo.config import CorrectionConfig, LossConfig, Objective, Ratio
from treepo.errors import InvalidConfigError, InvalidInputError, UnsupportedModelError
from treepo.train.head import Head, output_head, token_logprobs
from treepo.train.importance import correction
from treepo.train.losses import policy_loss

CONFIG = LossConfig(clip_low=0.2, clip_high=0.3)
TINY = {
    "vocab_size": 17,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def loss_of(ratios, advantages, total_weight=None, config=CONFIG, **options):
    old = torch.full((len(ratios),), -1.5, dtype=torch.float64)
    logprob = old + torch.tensor(ratios, dtype=torch.float64).log()
    logprob.requires_grad_()
    advantage = torch.tensor(advantages, dtype=torch.float64)
    count = len(ratios) if total_weight is None else total_weight
    terms = policy_loss(logprob, old, advantage, config, count, **options)
    (gradient,) = torch.autograd.grad(terms.loss, logprob)
    return terms, gradient


def test_loss_is_the_clipped_objective_by_hand():
    terms, gradient = loss_of([1.0, 2.0, 0.5, 0.5, 2.0], [1.0, 1.0, 1.0, -1.0, -1.0], 10)
    assert terms.loss.item() == pytest.approx(-(1.0 + 1.3 + 0.5 - 0.8 - 2.0) / 10)
    assert gradient.tolist() == pytest.approx([-0.1, 0.0, -0.05, 0.0, 0.2])


def test_clip_counts_are_tokens_without_a_gradient():
    terms, gradient = loss_of([1.0, 2.0, 0.5, 0.5, 0.1, 2.0], [1.0, 1.0, 1.0, -1.0, -1.0, -1.0])
    assert terms.clipped_high.item() == 1
    assert terms.clipped_low.item() == 2
    assert int((gradient == 0).sum()) == 3


def test_dual_clip_bounds_the_loss_of_a_bad_token():
    config = LossConfig(clip_low=0.2, clip_high=0.3, dual_clip=3.0)
    terms, gradient = loss_of([2.0, 5.0, 5.0], [-1.0, -1.0, 1.0], config=config)
    assert terms.loss.item() == pytest.approx((2.0 + 3.0 - 1.3) / 3)
    assert gradient.tolist() == pytest.approx([2 / 3, 0.0, 0.0])


def test_cispo_has_a_gradient_beyond_the_edges():
    config = LossConfig(clip_low=0.2, clip_high=0.3, objective=Objective.CISPO)
    _, gradient = loss_of([1.0, 2.0, 0.5], [1.0, 2.0, -1.0], 1, config)
    assert gradient.tolist() == pytest.approx([-1.0, -1.3 * 2.0, 0.8])


def test_ratios_of_trajectories_are_geometric_means():
    config = LossConfig(clip_low=0.2, clip_high=0.3, ratio=Ratio.TRAJECTORY)
    trajectory = torch.tensor([0, 0, 1])
    terms, gradient = loss_of([2.0, 0.5, 2.0], [1.0, 1.0, 1.0], 1, config, trajectory=trajectory)
    # The first trajectory's ratio is 1, the second one's is clipped.
    assert terms.loss.item() == pytest.approx(-(1.0 + 1.0 + 1.3))
    assert gradient.tolist() == pytest.approx([-1.0, -1.0, 0.0])
    assert terms.clipped_high.item() == 1


def test_ratios_of_trajectories_need_the_trajectories():
    with pytest.raises(InvalidInputError, match="trajectory of each token"):
        loss_of([1.0], [1.0], config=LossConfig(ratio=Ratio.TRAJECTORY))


def test_weights_multiply_the_objective():
    weight = torch.tensor([0.5, 2.0], dtype=torch.float64)
    terms, _ = loss_of([1.0, 1.1], [1.0, -1.0], 2.5, weight=weight)
    assert terms.loss.item() == pytest.approx(-(0.5 - 2.2) / 2.5)


@pytest.mark.parametrize(
    ("kl", "value", "slope"),
    [
        ("k1", lambda d: d, lambda d: 1),
        ("k2", lambda d: d * d / 2, lambda d: d),
        ("k3", lambda d: math.exp(-d) - 1 + d, lambda d: 1 - math.exp(-d)),
    ],
)
def test_divergence_from_the_reference_by_hand(kl, value, slope):
    config = LossConfig(kl=kl, kl_weight=0.5)
    reference = torch.tensor([-1.0, -2.0], dtype=torch.float64)  # The log-prob is -1.5.
    terms, gradient = loss_of([1.0, 1.0], [0.0, 0.0], 2, config, reference=reference)
    differences = [-0.5, 0.5]
    assert terms.kl.item() == pytest.approx(sum(value(d) for d in differences))
    assert terms.loss.item() == pytest.approx(0.25 * sum(value(d) for d in differences))
    assert gradient.tolist() == pytest.approx([0.25 * slope(d) for d in differences])


def test_entropy_is_a_bonus():
    entropy = torch.tensor([0.5, 1.5], dtype=torch.float64)
    terms, _ = loss_of([1.0, 1.0], [0.0, 0.0], 2, LossConfig(entropy_weight=0.1), entropy=entropy)
    assert terms.loss.item() == pytest.approx(-0.1)


@pytest.mark.parametrize(
    ("by", "level", "expected"),
    [
        ("truncate", "token", [0.5, 1.0, 2.0, 1.5]),
        ("mask", "token", [0.5, 1.0, 0.0, 1.5]),
        ("truncate", "trajectory", [0.5, 0.5, 2.0, 2.0]),
        ("mask", "trajectory", [0.5, 0.5, 0.0, 0.0]),
    ],
)
def test_importance_corrections_by_hand(by, level, expected):
    trainer = torch.tensor([0.5, 1.0, 3.0, 1.5]).log()
    config = CorrectionConfig(by=by, level=level, max_ratio=2.0)
    found = correction(trainer, torch.zeros(4), torch.tensor([0, 0, 1, 1]), config)
    torch.testing.assert_close(found, torch.tensor(expected))


def test_a_correction_multiplies_the_objective_and_not_the_divergence():
    config = LossConfig(kl_weight=1.0, kl="k2")
    reference = torch.tensor([-2.5], dtype=torch.float64)
    weight = torch.tensor([0.25], dtype=torch.float64)
    terms, _ = loss_of([1.0], [2.0], 1, config, reference=reference, correction=weight)
    assert terms.loss.item() == pytest.approx(-(0.25 * 2.0 - 0.5))


def test_dual_clip_belongs_to_the_clipped_objective():
    with pytest.raises(InvalidConfigError, match="dual_clip = 3 belongs to objective clip"):
        LossConfig(dual_clip=3.0, objective=Objective.CISPO)


def test_upper_and_lower_edge_differ():
    inside, outside = loss_of([1.29, 0.81], [1.0, -1.0]), loss_of([1.31, 0.79], [1.0, -1.0])
    assert inside[0].clipped_high.item() == inside[0].clipped_low.item() == 0
    assert outside[0].clipped_high.item() == outside[0].clipped_low.item() == 1


def test_shares_of_micro_batches_add_up_to_the_mean_over_all_tokens():
    whole, _ = loss_of([0.9, 1.1, 1.2], [1.0, -2.0, 0.5])
    first, _ = loss_of([0.9], [1.0], 3)
    rest, _ = loss_of([1.1, 1.2], [-2.0, 0.5], 3)
    assert whole.loss.item() == pytest.approx(first.loss.item() + rest.loss.item())


def test_ratio_metrics_describe_the_tokens():
    terms, _ = loss_of([0.5, 1.0, 4.0], [1.0, 1.0, 1.0])
    assert terms.ratio_min.item() == pytest.approx(0.5)
    assert terms.ratio_max.item() == pytest.approx(4.0)


def full_logprobs(hidden, head, token_ids, temperature):
    z = torch.nn.functional.linear(hidden, head.weight, head.bias)
    if head.softcap is not None:
        z = head.softcap * torch.tanh(z / head.softcap)
    logp = torch.log_softmax(z * head.scale / temperature, -1)
    return logp.gather(1, token_ids[:, None])[:, 0], -(logp.exp() * logp).sum(-1)


def head_inputs(bias, scale, softcap):
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(11, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(13, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    offset = torch.randn(13, generator=generator, dtype=torch.float64, requires_grad=True)
    ids = torch.randint(0, 13, (11,), generator=generator)
    return (
        hidden,
        ids,
        Head(weight=weight, bias=offset if bias else None, scale=scale, softcap=softcap),
    )


@pytest.mark.parametrize("rows", [1, 4, 11, 50])
@pytest.mark.parametrize(
    ("bias", "scale", "softcap"),
    [(False, 1.0, None), (True, 0.25, None), (False, 1.0, 1.5), (True, 3.0, 2.0)],
    ids=["plain", "bias-scale", "cap", "all"],
)
def test_chunked_head_equals_the_full_head(rows, bias, scale, softcap):
    hidden, ids, head = head_inputs(bias, scale, softcap)
    inputs = [hidden, head.weight] + ([head.bias] if bias else [])
    cotangent = torch.arange(11, dtype=torch.float64).cos()
    ours, entropy = token_logprobs(hidden, head, ids, 0.6, max_chunk_logits=13 * rows)
    theirs, full_entropy = full_logprobs(hidden, head, ids, 0.6)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    torch.testing.assert_close(entropy, full_entropy, rtol=0, atol=1e-12)
    for weight, entropy_weight in ((1.0, 0.0), (0.0, 1.0), (0.7, -0.4)):
        total = weight * (ours @ cotangent) + entropy_weight * (entropy @ cotangent.flip(0))
        full = weight * (theirs @ cotangent) + entropy_weight * (full_entropy @ cotangent.flip(0))
        grads = torch.autograd.grad(total, inputs, retain_graph=True)
        full_grads = torch.autograd.grad(full, inputs, retain_graph=True)
        for ours_grad, full_grad in zip(grads, full_grads, strict=True):
            torch.testing.assert_close(ours_grad, full_grad, rtol=0, atol=1e-12)


def test_probabilities_that_are_computed_again_sum_to_one():
    """A bias that all logits share has no gradient, however the sum of exponentials is rounded."""
    hidden, ids, head = head_inputs(bias=True, scale=1.0, softcap=None)
    bias = (head.bias.detach() + 512).float().requires_grad_()
    head = Head(weight=head.weight.detach().float(), bias=bias)
    logprob, _ = token_logprobs(hidden.detach().float(), head, ids, 1.0, max_chunk_logits=13 * 4)
    logprob.sum().backward()
    assert float(bias.grad.abs().max()) > 0.1
    assert abs(float(bias.grad.sum())) < 5e-6


def test_a_head_that_is_not_trained_gets_no_gradient():
    hidden, ids, head = head_inputs(bias=False, scale=1.0, softcap=None)
    (expected,) = torch.autograd.grad(token_logprobs(hidden, head, ids, 1.0)[0].sum(), hidden)
    frozen = Head(weight=head.weight.detach())
    token_logprobs(hidden, frozen, ids, 1.0)[0].sum().backward()
    torch.testing.assert_close(hidden.grad, expected)
    assert frozen.weight.grad is None


def test_no_more_than_a_chunk_of_logits_exists(monkeypatch):
    hidden, ids, head = head_inputs(bias=False, scale=1.0, softcap=None)
    sizes = []
    original = Head.logits

    def counted(self, rows, out):
        z = original(self, rows, out)
        sizes.append(z.numel())
        return z

    monkeypatch.setattr(Head, "logits", counted)
    logprob, _ = token_logprobs(hidden, head, ids, 1.0, max_chunk_logits=13 * 3)
    logprob.sum().backward()
    assert max(sizes) <= 13 * 3
    assert len(sizes) == 8


def test_half_precision_log_probs_are_computed_in_float32():
    hidden, ids, head = head_inputs(bias=True, scale=1.0, softcap=None)
    half = Head(weight=head.weight.bfloat16(), bias=head.bias.bfloat16())
    logprob, _ = token_logprobs(hidden.bfloat16(), half, ids, 1.0, max_chunk_logits=13 * 4)
    assert logprob.dtype == torch.float32
    grads = torch.autograd.grad(logprob.sum(), [hidden, head.weight, head.bias])
    full = full_logprobs(hidden, head, ids, 1.0)[0].sum()
    for ours, theirs in zip(
        grads, torch.autograd.grad(full, [hidden, head.weight, head.bias]), strict=True
    ):
        assert (ours - theirs).norm() / theirs.norm() < 0.05


@pytest.mark.parametrize(
    ("model_class", "config", "scale", "softcap"),
    [
        (LlamaForCausalLM, LlamaConfig(**TINY), 1.0, None),
        (LlamaForCausalLM, LlamaConfig(**TINY, tie_word_embeddings=True), 1.0, None),
        (Gemma2ForCausalLM, Gemma2Config(**TINY, final_logit_softcapping=0.5), 1.0, 0.5),
        (CohereForCausalLM, CohereConfig(**TINY, logit_scale=0.0625), 0.0625, None),
        (Gemma2ForCausalLM, Gemma2Config(**TINY, initializer_range=1e-3), 1.0, 30.0),
        (GraniteForCausalLM, GraniteConfig(**TINY, logits_scaling=4.0), 0.25, None),
    ],
    ids=["llama", "tied", "gemma2", "cohere", "cap-far-above-logits", "granite"],
)
def test_head_is_found_by_what_it_computes(model_class, config, scale, softcap):
    torch.manual_seed(0)
    model = model_class(config)
    head = output_head(model)
    assert (head.scale / head.divisor, head.softcap) == (scale, softcap)
    assert head.weight is model.get_output_embeddings().weight


def test_a_head_that_does_more_is_refused_by_name():
    class ShiftedForCausalLM(LlamaForCausalLM):
        def forward(self, *args, **kwargs):
            output = super().forward(*args, **kwargs)
            output.logits = output.logits + 1
            return output

    with pytest.raises(UnsupportedModelError, match="ShiftedForCausalLM"):
        output_head(ShiftedForCausalLM(LlamaConfig(**TINY)))


def test_a_head_that_is_not_linear_is_refused_by_name():
    model = LlamaForCausalLM(LlamaConfig(**TINY))
    model.lm_head = torch.nn.Sequential(model.lm_head)
    with pytest.raises(UnsupportedModelError, match="Sequential"):
        output_head(model)
