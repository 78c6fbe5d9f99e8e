"""Tree search over any function that continues tokens: `python examples/segments.py`.

The function here is an n-gram sampler over a few sentences; a server or another engine takes its
place. The search says which segments to run, and gets their tokens. It needs numpy alone.
"""

import numpy as np

from treepo.core import Search, SearchConfig
from treepo.forest import FinishReason, Forest

TEXT = (
    "the cat sat on the mat.the dog sat on the log.the cat ran to the dog.a dog and a cat sat on "
    "a log.the rat ran to the mat and sat on the hat.a rat and the cat ate the dog and ran to it."
)
LETTERS = sorted(set(TEXT))
EOS = LETTERS.index(".")
ORDER = 3
SEED = 0


def next_distribution(context: str) -> np.ndarray:
    """Probabilities of the letters behind the last letters of the context."""
    context = context[-ORDER:]
    counts = np.zeros(len(LETTERS))
    while not counts.any():
        for start in range(len(TEXT) - len(context)):
            if TEXT.startswith(context, start):
                counts[LETTERS.index(TEXT[start + len(context)])] += 1
        context = context[1:]
    return counts / counts.sum()


def continue_tokens(tokens: np.ndarray, max_new_tokens: int, rng: np.random.Generator):
    """Samples until the limit or the end; returns token ids, log-probs and entropies."""
    text = "".join(LETTERS[token] for token in tokens)
    ids, logprobs, entropies = [], [], []
    while len(ids) < max_new_tokens and EOS not in ids:
        p = next_distribution(text)
        ids.append(int(rng.choice(len(p), p=p)))
        logprobs.append(np.log(p[ids[-1]]))
        entropies.append(-np.sum(p * np.log(p, where=p > 0, out=np.zeros_like(p))))
        text += LETTERS[ids[-1]]
    return np.array(ids, np.uint32), np.float32(logprobs), np.float32(entropies)


def grow(config: SearchConfig, prompt: str) -> Forest:
    """Runs one tree to its end."""
    search = Search(config, seed=SEED)
    search.add_tree(key=7, prompt=np.array([LETTERS.index(letter) for letter in prompt], np.uint32))
    while not search.is_done():
        for tree, path, max_new_tokens in search.segments():
            tokens = search.tokens(tree, path)
            rng = np.random.default_rng([SEED, tree, path, len(tokens)])  # no order changes it
            search.complete_segment(tree, path, *continue_tokens(tokens, max_new_tokens, rng))
    return Forest(search.forest())


def print_tree(forest: Forest) -> None:
    """Prints a line for each node, indented by its depth."""
    nodes = forest.nodes()
    leaf_paths = {int(node): path for path, node in enumerate(nodes.leaf)}
    for node, (path, start, end, depth) in enumerate(
        zip(nodes.path, nodes.start, nodes.end, nodes.depth, strict=True)
    ):
        text = "".join(LETTERS[token] for token in forest.token_ids(path)[start:end])
        ending = ""
        if node in leaf_paths:
            reason = FinishReason(forest.paths.finish[leaf_paths[node]])
            ending = f"  [path {leaf_paths[node]}: {reason.name.lower()}]"
        print("  " * depth + repr(text) + ending)


if __name__ == "__main__":
    config = SearchConfig(
        width=8, segment_len=5, max_depth=9, initial_divergence=1, eos_token_ids=[EOS]
    )
    forest = grow(config, "the ")
    print_tree(forest)
    num_sampled = forest.num_unique_completion_tokens
    print(
        f"{forest.num_paths} leaves, {num_sampled} tokens sampled, share {forest.share_ratio:.2f}"
    )
