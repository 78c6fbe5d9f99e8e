"""llama.cpp as a contestant: one context, a sequence for each completion, decoded in one batch.

    CMAKE_ARGS="-DLLAVA_BUILD=OFF" pip install llama-cpp-python==0.3.36

The package compiles llama.cpp for the machine's own CPU; PyPI's prebuilt wheels (xllamacpp,
llama-cpp-py-sync) stop at AVX2. The loop is that of llama.cpp's `batched` example. Each sequence
has a KV stream of its own (a unified cache would attend over all of them), keys and values are
fp16 as by default, flash attention is on. llama.cpp's own samplers draw the tokens; the
log-probability is read from the distribution that they leave.
"""

from __future__ import annotations

import argparse
import ctypes
import math
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from peers.server import Reply, Request, flat_reply, own_stdout, serve

BATCH_TOKENS, UBATCH_TOKENS = 2048, 512


class Decoder:
    """A model, its context and the batch and candidate arrays that it reads.

    Args:
        path: GGUF file.
        num_seqs: Sequences at once, at most 256.
        seq_len: Tokens of a sequence at most.
        threads: Threads of prefill and decode.
    """

    def __init__(self, path: str, *, num_seqs: int, seq_len: int, threads: int) -> None:
        import llama_cpp

        self.api: Any = llama_cpp
        llama_cpp.llama_backend_init()
        model = llama_cpp.llama_model_load_from_file(
            path.encode(), llama_cpp.llama_model_default_params()
        )
        if not model:
            raise RuntimeError(f"llama.cpp cannot load {path}")
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_seq_max = num_seqs * seq_len, num_seqs
        params.n_batch, params.n_ubatch = BATCH_TOKENS, UBATCH_TOKENS
        params.n_threads = params.n_threads_batch = threads
        params.kv_unified = False
        params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED
        self.context = llama_cpp.llama_init_from_model(model, params)
        if not self.context:
            raise RuntimeError(f"llama.cpp makes no context of {num_seqs} x {seq_len} tokens")
        self.memory = llama_cpp.llama_get_memory(self.context)
        self.vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
        self.batch = llama_cpp.llama_batch_init(BATCH_TOKENS, 0, 1)
        row = np.dtype([("id", "i4"), ("logit", "f4"), ("p", "f4")])
        self.candidates = np.zeros(self.vocab_size, row)

    def complete(self, prompts: list[list[int]], request: Request) -> list[list[int]]:
        """Completions of `prompts`, one each; a sequence that stops leaves the batch."""
        self.api.llama_memory_clear(self.memory, False)
        sampler = self.sampler(request)
        completions: list[list[int]] = [[] for _ in prompts]
        logprobs: list[list[float]] = [[] for _ in prompts]
        live = set(range(len(prompts)))
        steps = prompt_batches(prompts)
        while live:
            rows = next(steps, None)
            if rows is None:
                rows = [
                    (seq, completions[seq][-1], len(prompts[seq]) + len(completions[seq]) - 1, True)
                    for seq in sorted(live)
                ]
            logits = self.decode(rows)
            for (seq, *_), row in zip([x for x in rows if x[3]], logits, strict=True):
                token, logprob = self.sample(sampler, row)
                completions[seq].append(token)
                logprobs[seq].append(logprob)
                is_stop = token in request.stop_token_ids
                if is_stop or len(completions[seq]) == request.max_tokens:
                    live.discard(seq)
        self.api.llama_sampler_free(sampler)
        return completions

    def decode(self, rows: list[tuple[int, int, int, bool]]) -> np.ndarray:
        """Feed rows of (sequence, token, position, wants logits); logits [wanted, vocab_size]."""
        batch = self.batch
        batch.n_tokens = len(rows)
        for index, (seq, token, position, wants) in enumerate(rows):
            batch.token[index], batch.pos[index] = token, position
            batch.n_seq_id[index], batch.seq_id[index][0] = 1, seq
            batch.logits[index] = wants
        if self.api.llama_decode(self.context, batch) != 0:
            raise RuntimeError(f"llama.cpp failed on a batch of {len(rows)} tokens")
        num_wanted = sum(row[3] for row in rows)
        if num_wanted == 0:
            return np.empty((0, self.vocab_size), np.float32)
        logits = self.api.llama_get_logits(self.context)
        return np.ctypeslib.as_array(logits, (num_wanted, self.vocab_size))

    def sampler(self, request: Request) -> Any:
        """Temperature and draw, or the most likely token."""
        api = self.api
        chain = api.llama_sampler_chain_init(api.llama_sampler_chain_default_params())
        if request.temperature == 0:
            api.llama_sampler_chain_add(chain, api.llama_sampler_init_greedy())
        else:
            api.llama_sampler_chain_add(chain, api.llama_sampler_init_temp(request.temperature))
            api.llama_sampler_chain_add(chain, api.llama_sampler_init_dist(request.seed))
        return chain

    def sample(self, sampler: Any, logits: np.ndarray) -> tuple[int, float]:
        """A token and its log-probability (NaN for the most likely token)."""
        rows = self.candidates
        rows["id"] = np.arange(self.vocab_size, dtype=np.int32)
        rows["logit"], rows["p"] = logits, 0
        data = rows.ctypes.data_as(ctypes.POINTER(self.api.llama_token_data))
        array = self.api.llama_token_data_array(
            data=data, size=self.vocab_size, selected=-1, sorted=False
        )
        self.api.llama_sampler_apply(sampler, ctypes.byref(array))
        drawn = rows[array.selected]
        probability = float(drawn["p"])
        return int(drawn["id"]), math.log(probability) if probability > 0 else math.nan


def prompt_batches(prompts: list[list[int]]) -> Iterator[list[tuple[int, int, int, bool]]]:
    """Rows of the prompts in batches; only a prompt's last row wants logits."""
    rows: list[tuple[int, int, int, bool]] = []
    for seq, prompt in enumerate(prompts):
        if len(rows) + len(prompt) > BATCH_TOKENS:
            yield rows
            rows = []
        last = len(prompt) - 1
        rows += [(seq, token, position, position == last) for position, token in enumerate(prompt)]
    yield rows


def main() -> None:
    answers = own_stdout()
    options = parse()
    decoder = Decoder(
        options.gguf,
        num_seqs=options.max_num_seqs,
        seq_len=options.seq_len,
        threads=options.threads,
    )

    def run(request: Request) -> Reply:
        prompts = [prompt for prompt in request.prompts for _ in range(request.n)]
        began = time.perf_counter()
        completions = decoder.complete(prompts, request)
        return flat_reply(time.perf_counter() - began, completions, request)

    serve(run, ("llama-cpp-python",), answers)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gguf", required=True, help="GGUF file, see peers/make_gguf.py")
    parser.add_argument("--max-num-seqs", type=int, default=128)
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


if __name__ == "__main__":
    main()
