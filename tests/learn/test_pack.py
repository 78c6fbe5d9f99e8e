from itertools import pairwise

import numpy as np
import pytest

from treepo.errors import InvalidInputError
from treepo.forest import TokenKind
from treepo.train.pack import microbatches, pack, tree_sizes

SEEDS = range(20)


def visible(packed):
    index = np.arange(packed.num_tokens)
    return (index[None, :] <= index[:, None]) & (index[:, None] < packed.subtree_end[None, :])


def packed_position(packed, forest):
    where = np.full(forest.num_tokens, -1)
    where[packed.token_index] = np.arange(packed.num_tokens)
    return where


def test_small_forest_packs_depth_first(small_forest):
    packed = pack(small_forest)
    assert packed.token_ids.tolist() == [10, 11, 12, 13, 14, 15, 16, 20, 21]
    assert packed.positions.tolist() == [0, 1, 2, 3, 4, 3, 4, 0, 1]
    assert packed.subtree_end.tolist() == [7, 7, 7, 5, 5, 7, 7, 9, 9]


def test_first_token_of_a_fork_is_predicted_by_the_parent(small_forest):
    packed = pack(small_forest)
    predictor = dict(zip(packed.target.tolist(), packed.predictor.tolist(), strict=True))
    assert predictor == {2: 1, 4: 3, 5: 2, 6: 5, 8: 7}


def test_only_sampled_tokens_are_targets_and_each_is_expanded_per_trajectory(small_forest):
    packed = pack(small_forest)
    assert packed.old_logprob.tolist() == [-1, -2, -3, -4, -5]
    assert packed.entropy.tolist() == [1, 2, 3, 4, 5]
    assert packed.src.tolist() == [0, 1, 0, 2, 3, 4]
    assert packed.src_path.tolist() == [0, 0, 1, 1, 1, 2]


def test_attention_spans_hold_no_only_child(small_forest):
    spans = pack(small_forest).spans
    assert spans.start.tolist() == [0, 3, 5, 7]
    assert spans.length.tolist() == [3, 2, 2, 2]
    assert spans.parent.tolist() == [-1, 0, 0, -1]


@pytest.mark.parametrize("seed", SEEDS)
def test_every_token_sees_exactly_its_own_path(grow_forest, seed):
    forest = grow_forest(seed, vocab=9)
    packed = pack(forest)
    where, sees = packed_position(packed, forest), visible(packed)
    for path in range(forest.num_paths):
        row = where[forest.token_index(path)]
        assert packed.positions[row].tolist() == list(range(len(row)))
        assert packed.token_ids[row].tolist() == forest.token_ids(path).tolist()
        for depth, position in enumerate(row):
            assert np.flatnonzero(sees[position]).tolist() == sorted(row[: depth + 1])


@pytest.mark.parametrize("seed", SEEDS)
def test_expansion_lists_each_trajectory_in_order(grow_forest, seed):
    forest = grow_forest(seed, vocab=9)
    packed = pack(forest)
    where = packed_position(packed, forest)
    for path in range(forest.num_paths):
        index = forest.token_index(path)
        row = where[index]
        sampled = np.asarray(forest.tokens.kind)[index] == TokenKind.SAMPLED
        src = packed.src[packed.src_path == path]
        assert packed.target[src].tolist() == row[sampled].tolist()
        assert packed.predictor[src].tolist() == row[np.flatnonzero(sampled) - 1].tolist()
        old = np.asarray(forest.tokens.logprob)[index][sampled]
        assert packed.old_logprob[src].tolist() == old.tolist()


@pytest.mark.parametrize("seed", SEEDS)
def test_every_forest_token_is_packed_once(grow_forest, seed):
    forest = grow_forest(seed, vocab=9)
    packed = pack(forest)
    assert sorted(packed.token_index.tolist()) == list(range(forest.num_tokens))


@pytest.mark.parametrize("seed", SEEDS)
def test_chosen_paths_leave_out_all_other_tokens(grow_forest, seed):
    forest = grow_forest(seed, vocab=9)
    chosen = np.random.default_rng(seed).permutation(forest.num_paths)[:5]
    packed = pack(forest, chosen)
    needed = np.unique(np.concatenate([forest.token_index(path) for path in chosen]))
    assert sorted(packed.token_index.tolist()) == needed.tolist()
    for path in chosen:
        src = packed.src[packed.src_path == path]
        index = forest.token_index(path)
        sampled = np.asarray(forest.tokens.kind)[index] == TokenKind.SAMPLED
        assert packed.token_index[packed.target[src]].tolist() == index[sampled].tolist()
    assert set(packed.src_path.tolist()) <= set(chosen.tolist())


@pytest.mark.parametrize("seed", SEEDS)
def test_attention_spans_chain_to_the_paths(grow_forest, seed):
    packed = pack(grow_forest(seed, vocab=9))
    spans, sees = packed.spans, visible(packed)
    assert spans.length.sum() == packed.num_tokens
    for node in range(len(spans.start)):
        chain, at = [], node
        while at >= 0:
            chain.append(np.arange(spans.start[at], spans.start[at] + spans.length[at]))
            at = spans.parent[at]
        row = np.concatenate(chain[::-1])
        assert np.flatnonzero(sees[row[-1]]).tolist() == row.tolist()


def test_microbatches_hold_whole_trees_in_order_within_the_limit(grow_forest):
    forest = grow_forest(3, vocab=9, num_trees=9)
    sizes = tree_sizes(forest)
    assert sizes.sum() == forest.num_tokens
    limit = int(sizes.max()) + 7
    parts = microbatches(forest, limit)
    assert len(parts) > 1
    assert np.concatenate(parts).tolist() == list(range(9))
    assert all(sizes[part].sum() <= limit for part in parts)


def test_microbatches_are_as_full_as_the_order_allows(grow_forest):
    forest = grow_forest(3, vocab=9, num_trees=9)
    sizes = tree_sizes(forest)
    limit = int(sizes.max()) + 7
    parts = microbatches(forest, limit)
    for part, after in pairwise(parts):
        assert sizes[part].sum() + sizes[after[0]] > limit


def test_a_tree_above_the_limit_is_refused_by_name(grow_forest):
    forest = grow_forest(3, vocab=9)
    largest = int(tree_sizes(forest).max())
    with pytest.raises(InvalidInputError, match=rf"{largest}.*max_tokens_per_microbatch"):
        microbatches(forest, largest - 1)


@pytest.mark.parametrize(
    ("paths", "message"), [([], "no path"), ([0, 0], "repeat"), ([99], "99"), ([-1], "-1")]
)
def test_paths_that_cannot_be_packed_are_refused(small_forest, paths, message):
    with pytest.raises(InvalidInputError, match=message):
        pack(small_forest, paths)
