"""treepo as a contestant: trees and independent completions on one engine.

python -m peers.treepo_server --model FOLDER
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch

from peers.memory import process_bytes, resident_bytes
from peers.server import Reply, Request, own_stdout, serve
from treepo import Engine, EngineConfig, Forest, SamplingParams, SearchConfig
from treepo.engine.stats import EngineStats


def main() -> None:
    answers = own_stdout()
    options = parse()
    torch.set_num_threads(options.threads)
    engine = Engine.from_pretrained(
        options.model,
        EngineConfig(max_num_seqs=options.max_num_seqs),
        dtype=options.dtype,
        kv_cache_gib=options.kv_cache_gib,
    )
    serve(lambda request: answer(engine, request), ("treepo", "torch", "transformers"), answers)


def answer(engine: Engine, request: Request) -> Reply:
    """Run one rollout: a tree a prompt, or independent completions."""
    engine.eos_token_ids = tuple(request.stop_token_ids)
    sampling = SamplingParams(temperature=request.temperature)
    if request.segment_len is None:
        search = SearchConfig.flat(request.n, request.max_tokens)
    else:
        search = SearchConfig(
            width=request.n, segment_len=request.segment_len, max_depth=request.max_depth
        )
    peak = Peak()
    began = time.perf_counter()
    forest = engine.rollout(request.prompts, search, sampling, seed=request.seed, on_step=peak.see)
    seconds = time.perf_counter() - began
    return Reply(
        seconds=seconds,
        completions=forest.num_paths,
        tokens=forest.num_completion_tokens,
        decoded=forest.num_unique_completion_tokens,
        details={**counts(engine), **peak.details(), **memory(engine)},
        token_ids=completions(forest) if request.wants_tokens else None,
    )


class Peak:
    """The step at which the most blocks were in use.

    Attributes:
        blocks: Blocks in use then.
        decoded: Tokens sampled until then.
        finished: Trees that were complete then.
    """

    def __init__(self) -> None:
        self.blocks = self.decoded = self.finished = 0

    def see(self, stats: EngineStats) -> None:
        """Take note of a step."""
        if stats.peak_blocks > self.blocks:
            self.blocks = stats.peak_blocks
            self.decoded, self.finished = stats.decoded_tokens, stats.finished_trees

    def details(self) -> dict[str, int]:
        """For the reply."""
        return {"peak_decoded_tokens": self.decoded, "peak_finished_trees": self.finished}


def counts(engine: Engine) -> dict[str, Any]:
    """The engine's counts of the rollout."""
    names = ("steps", "prefill_tokens", "recomputed_tokens", "preemptions", "peak_blocks")
    stats = {name: getattr(engine.stats, name) for name in names}
    return {**stats, "block_size": engine.config.block_size}


def memory(engine: Engine) -> dict[str, int]:
    """Resident bytes of the process, and of the KV pool in it."""
    pool = engine.acquire()
    tensors = [x for index in range(len(engine.shapes.layers)) for x in pool.layer(index)]
    return {"process_bytes": process_bytes(), "pool_bytes": resident_bytes(tensors)}


def completions(forest: Forest) -> list[list[int]]:
    return [forest.completion_ids(path).tolist() for path in range(forest.num_paths)]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="Hugging Face folder")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--max-num-seqs", type=int, default=128)
    parser.add_argument("--kv-cache-gib", type=float, default=4.0)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


if __name__ == "__main__":
    main()
