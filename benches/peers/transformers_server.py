"""transformers as a contestant: `generate` on a padded batch, or continuous batching.

    python -m peers.transformers_server --model FOLDER --mode generate|continuous

Both run scaled dot-product attention. `generate` gets its sampled log-probabilities from a logits
processor that keeps one step's distribution; its own way keeps the logits of all steps.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from transformers import (
    AutoModelForCausalLM,
    ContinuousBatchingConfig,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
)

from peers.server import Reply, Request, flat_reply, own_stdout, serve

PAD = 0
# Left to choose, the cache takes most of the machine's memory; this holds 49,152 tokens.
BATCHING = ContinuousBatchingConfig(
    page_size=32,
    num_blocks=1536,
    max_batch_tokens=2048,
    max_requests_per_batch=256,
    return_logprobs=True,
    allow_block_sharing=False,
)


class SampledLogprobs(LogitsProcessor):
    """Log-probabilities of the tokens that were drawn: `values` holds [batch] for each step."""

    def __init__(self) -> None:
        self.values: list[torch.Tensor] = []
        self._previous: torch.Tensor | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Read the last token's value from the previous step's distribution and keep this one."""
        self.see(input_ids)
        self._previous = torch.log_softmax(scores, dim=-1)
        return scores

    def see(self, input_ids: torch.Tensor) -> None:
        """Take the value of the last drawn token."""
        if self._previous is not None:
            self.values.append(self._previous.gather(1, input_ids[:, -1:]).squeeze(1))


def generation_config(request: Request) -> GenerationConfig:
    """T = 1 without filters by default, or greedy."""
    is_greedy = request.temperature == 0
    draws = {} if is_greedy else {"temperature": request.temperature, "top_k": 0, "top_p": 1.0}
    stop = request.stop_token_ids or None
    return GenerationConfig(
        do_sample=not is_greedy,
        max_new_tokens=request.max_tokens,
        eos_token_id=stop,
        pad_token_id=PAD,
        **draws,
    )


@torch.inference_mode()
def generate(model: PreTrainedModel, request: Request) -> Reply:
    """One call of `generate` on the prompts, padded on the left."""
    prompts = [prompt for prompt in request.prompts for _ in range(request.n)]
    longest = max(len(prompt) for prompt in prompts)
    began = time.perf_counter()
    pads = [longest - len(prompt) for prompt in prompts]
    ids = [[PAD] * pad + prompt for pad, prompt in zip(pads, prompts, strict=True)]
    mask = [[0] * pad + [1] * (longest - pad) for pad in pads]
    logprobs = SampledLogprobs()
    output = model.generate(
        input_ids=torch.tensor(ids),
        attention_mask=torch.tensor(mask),
        generation_config=generation_config(request),
        logits_processor=LogitsProcessorList([logprobs]),
    )
    logprobs.see(output)
    rows = [cut(row, request.stop_token_ids) for row in output[:, longest:].tolist()]
    return flat_reply(time.perf_counter() - began, rows, request)


def cut(tokens: list[int], stop_token_ids: list[int]) -> list[int]:
    """The tokens up to the first stop token, which is kept."""
    ends = [index for index, token in enumerate(tokens) if token in stop_token_ids]
    return tokens[: ends[0] + 1] if ends else tokens


class Continuous:
    """`generate_batch` with a manager and cache that persist from call to call.

    Without inference mode: the manager's thread writes into tensors that the call makes.
    """

    def __init__(self) -> None:
        self._settings: tuple[float, list[int]] | None = None

    def __call__(self, model: PreTrainedModel, request: Request) -> Reply:
        """One call; other sampling settings than the last call's need another manager."""
        if self._settings not in (None, (request.temperature, request.stop_token_ids)):
            model.destroy_cached_continuous_batching_manager()
        self._settings = (request.temperature, request.stop_token_ids)
        config = generation_config(request)
        config.eos_token_id = config.eos_token_id or -1
        prompts = [prompt for prompt in request.prompts for _ in range(request.n)]
        began = time.perf_counter()
        outputs = model.generate_batch(
            prompts,
            generation_config=config,
            continuous_batching_config=BATCHING,
            persistent_manager=True,
        )
        seconds = time.perf_counter() - began
        rows = [output.generated_tokens for output in outputs.values()]
        errors = [output.error for output in outputs.values() if output.error]
        if errors or len(rows) != len(prompts):
            raise RuntimeError(f"{len(rows)} of {len(prompts)} requests came back: {errors[:1]}")
        return flat_reply(seconds, rows, request)


MODES: dict[str, Callable[[PreTrainedModel, Request], Reply]] = {
    "generate": generate,
    "continuous": Continuous(),
}


def main() -> None:
    answers = own_stdout()
    options = parse()
    torch.set_num_threads(options.threads)
    model = AutoModelForCausalLM.from_pretrained(
        options.model, dtype=getattr(torch, options.dtype), attn_implementation="sdpa"
    ).eval()
    run = MODES[options.mode]

    def answer(request: Request) -> Reply:
        torch.manual_seed(request.seed)
        return run(model, request)

    serve(answer, ("transformers", "torch"), answers)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="Hugging Face folder")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--mode", choices=sorted(MODES), default="generate")
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


if __name__ == "__main__":
    main()
