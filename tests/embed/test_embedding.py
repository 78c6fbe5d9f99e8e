"""treepo without torch: the search over any function that continues tokens, in numpy alone."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from treepo import advantages, core
from treepo.core import Search, SearchConfig
from treepo.forest import FinishReason, Forest

EOS = 0
ZEROS = np.zeros(2, np.float32)
DOCUMENT = Path(__file__).parents[2] / "docs" / "embedding.md"


def continue_tokens(tokens, max_new_tokens, rng):
    """Stands for another inference stack: up to `max_new_tokens` tokens, ending at EOS."""
    new = rng.integers(0, 12, max_new_tokens).astype(np.uint32)
    ends = np.flatnonzero(new == EOS)
    return new[: ends[0] + 1] if len(ends) else new


def grow(config, prompts, seed=0):
    rng = np.random.default_rng(seed)
    search = Search(config, seed=seed)
    for key, prompt in enumerate(prompts):
        search.add_tree(key, np.asarray(prompt, np.uint32))
    while not search.is_done():
        for tree, path, max_new_tokens in search.segments():
            new = continue_tokens(search.tokens(tree, path), max_new_tokens, rng)
            numbers = np.full(len(new), -1.0, np.float32)
            search.complete_segment(tree, path, new, numbers, -numbers)
    return Forest(search.forest())


def test_importing_treepo_loads_neither_torch_nor_transformers():
    code = (
        "import sys, treepo, treepo.rewards, treepo.forest\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_search_over_another_stack_gives_exactly_width_leaves():
    config = SearchConfig(width=6, segment_len=4, max_depth=3, eos_token_ids=[EOS])
    forest = grow(config, [[5, 6], [7, 8, 9]])
    assert np.diff(forest.trees.path_start).tolist() == [6, 6]
    assert (forest.paths.finish != FinishReason.NONE).all()
    assert forest.share_ratio > 1


def test_the_forest_of_another_stack_gets_advantages():
    config = SearchConfig(width=6, segment_len=4, max_depth=3, eos_token_ids=[EOS])
    forest = grow(config, [[5, 6], [7, 8, 9]])
    stopped = forest.paths.finish == FinishReason.STOP
    values = advantages(forest, stopped.astype(np.float32))
    assert values.shape == (12,)
    assert values[stopped].min() > values[~stopped].max()


class Engine:
    """Stands for an engine: each sample is an end of sequence with probability 1/4."""

    def step(self, plan, sizes):
        uniforms = plan.uniforms[: sizes.num_samples]
        numbers = np.full(len(uniforms), -1.0, np.float32)
        return np.where(uniforms < 0.25, 2, 7).astype(np.uint32), numbers, -numbers


def test_the_code_of_the_document_runs():
    blocks = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    names = {"engine": Engine(), "value_of": len}
    segments, scheduler, groups, own_trees, config, verdicts = (
        compile(block, str(DOCUMENT), "exec") for block in blocks
    )
    exec(segments, names)
    assert names["forest"].num_paths == 8
    exec(scheduler, names)
    assert names["forest"].num_paths == 8
    names["scheduler"].add_tree(18, np.array([1, 5, 9], np.uint32))
    names["plan"].plan(names["scheduler"])
    exec(groups, names)
    assert names["groups"].row_order[0] == 0
    exec(own_trees, names)
    assert names["values"][0] < 0 < names["values"][1]
    exec(config, names)
    exec(verdicts, names)


@pytest.mark.parametrize("name", ["Engine", "Trainer"])
def test_what_needs_torch_says_how_to_get_it(name):
    code = (
        "import sys\nsys.modules['torch'] = None\nimport treepo\n"
        f"try:\n    treepo.{name}\nexcept ImportError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == f"treepo.{name} needs torch: pip install 'treepo[train]'\n"


def test_weights_in_the_columns_of_a_forest_made_by_hand_move_its_credit():
    grown = core.Forest()
    tree = grown.add_tree(0, np.array([1, 5, 9], np.uint32))
    for path in range(3):
        if path:
            assert grown.fork(tree, 0, 3) == path
        grown.append(tree, path, np.array([4, path], np.uint32), np.float32([-1, -1]), ZEROS)
        grown.finish(tree, path, FinishReason.STOP)
    own, rewards = Forest(grown), [0.0, 1.0, 0.0]
    columns = own.columns()
    columns["path_weight"] = np.float32([1, 1, 4])
    weighted = Forest.from_columns(columns)
    assert weighted.paths.weight.tolist() == [1, 1, 4]
    before, after = (advantages(x, rewards, "tree_rloo") for x in (own, weighted))
    assert before[0] == before[2] < after[0] < 0 < after[1]
