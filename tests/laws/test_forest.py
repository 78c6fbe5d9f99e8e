"""The forest's columns, nodes, files and selections."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from treepo import core
from treepo.errors import DataError, InvalidInputError
from treepo.forest import Dependence, FinishReason, Forest, TokenKind

PATHS = st.integers(0, 1 << 30)
OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("tree"), st.integers(1, 3), st.just(0)),
        st.tuples(st.just("append"), PATHS, st.integers(1, 3)),
        st.tuples(st.just("append"), PATHS, st.integers(1, 3)),
        st.tuples(st.just("given"), PATHS, st.just(0)),
        st.tuples(st.just("fork"), PATHS, PATHS),
        st.tuples(st.just("mark"), PATHS, st.just(0)),
    ),
    max_size=40,
)


def grow(operations: list[tuple[str, int, int]]) -> tuple[Forest, dict[tuple[int, int], list[int]]]:
    """A forest and the plain token list of each (tree, path)."""
    forest, naive = core.Forest(), {}
    counter, prompt_lens = 0, []
    for name, a, b in [("tree", 2, 0), *operations]:
        counter += 10
        if name == "tree":
            prompt = list(range(counter, counter + a))
            naive[forest.add_tree(counter, np.array(prompt, np.uint32)), 0] = prompt
            prompt_lens.append(a)
            continue
        tree, path = list(naive)[a % len(naive)]
        tokens = naive[tree, path]
        if name == "append":
            new = list(range(counter, counter + b))
            numbers = np.array(new, np.float32)
            forest.append(tree, path, np.array(new, np.uint32), -numbers, numbers, version=b)
            tokens += new
        elif name == "given":
            forest.append_given(tree, path, np.array([counter], np.uint32))
            tokens.append(counter)
        elif name == "mark":
            forest.mark(tree, path)
        else:
            at = prompt_lens[tree] + b % (len(tokens) - prompt_lens[tree] + 1)
            naive[tree, forest.fork(tree, path, at)] = tokens[:at]
    return Forest(forest), naive


@given(OPERATIONS)
def test_every_path_reads_as_its_token_list(operations):
    forest, naive = grow(operations)
    for (tree, path), tokens in naive.items():
        number = int(forest.trees.path_start[tree]) + path
        assert forest.token_ids(number).tolist() == tokens
        assert forest.completion_ids(number).tolist() == tokens[forest.trees.prompt_len[tree] :]
        index = forest.token_index(number)
        assert forest.tokens.id[index].tolist() == tokens
        assert forest.paths.length[number] == len(index)


@given(OPERATIONS)
def test_only_sampled_tokens_have_numbers(operations):
    forest, _ = grow(operations)
    is_sampled = forest.tokens.kind == TokenKind.SAMPLED
    np.testing.assert_array_equal(is_sampled, ~np.isnan(forest.tokens.logprob))
    np.testing.assert_array_equal(is_sampled, ~np.isnan(forest.tokens.entropy))
    np.testing.assert_array_equal(forest.tokens.logprob[is_sampled], -forest.tokens.id[is_sampled])


@given(OPERATIONS)
def test_columns_rebuild_the_forest(operations):
    forest, _ = grow(operations)
    again = Forest.from_columns(forest.columns()).columns()
    for name, column in forest.columns().items():
        np.testing.assert_array_equal(column, again[name], err_msg=name)


@given(OPERATIONS)
def test_nodes_are_a_preorder_partition_of_the_tokens(operations):
    forest, _ = grow(operations)
    nodes = forest.nodes()
    lengths = nodes.end - nodes.start
    assert np.all(lengths > 0)
    owned = [np.arange(s, s + n) for s, n in zip(nodes.token_start, lengths, strict=True)]
    np.testing.assert_array_equal(np.sort(np.concatenate(owned)), np.arange(forest.num_tokens))
    for node, parent in enumerate(nodes.parent):
        assert node < nodes.subtree_end[node]
        if parent < 0:
            assert (nodes.start[node], nodes.depth[node]) == (0, 0)
            assert nodes.end[node] == forest.trees.prompt_len[nodes.tree[node]]
        else:
            assert parent < node < nodes.subtree_end[node] <= nodes.subtree_end[parent]
            assert nodes.start[node] == nodes.end[parent]


@given(OPERATIONS)
def test_the_nodes_up_to_a_leaf_hold_the_path(operations):
    forest, _ = grow(operations)
    nodes = forest.nodes()
    for path in range(forest.num_paths):
        node, pieces = int(nodes.leaf[path]), []
        while node >= 0:
            start = nodes.token_start[node]
            pieces.append(np.arange(start, start + nodes.end[node] - nodes.start[node]))
            node = int(nodes.parent[node])
        np.testing.assert_array_equal(np.concatenate(pieces[::-1]), forest.token_index(path))


def small() -> Forest:
    first = [("append", 0, 3), ("mark", 0, 0), ("fork", 0, 1), ("append", 1, 2)]
    return grow([*first, ("tree", 1, 0)])[0]


def test_a_saved_forest_is_loaded_as_it_was(tmp_path):
    forest = small()
    forest.set_rewards([0.5, 1.0, np.nan])
    forest.save(tmp_path / "forest.safetensors")
    loaded = Forest.load(tmp_path / "forest.safetensors").columns()
    for name, column in forest.columns().items():
        np.testing.assert_array_equal(column, loaded[name], err_msg=name)


def test_a_file_that_is_no_forest_is_a_data_error(tmp_path):
    file = tmp_path / "forest.safetensors"
    with pytest.raises(DataError, match="is not a forest file"):
        Forest.load(file)
    file.write_bytes(b"nonsense")
    with pytest.raises(DataError, match="is not a forest file"):
        Forest.load(file)


def test_a_file_whose_columns_contradict_each_other_is_a_data_error(tmp_path):
    columns = dict(small().columns())
    columns["path_at"] = columns["path_at"] + 1
    file = tmp_path / "forest.safetensors"
    save_file(columns, file)
    with pytest.raises(DataError, match="is not a forest file: forest columns"):
        Forest.load(file)


def test_what_forks_depend_on_is_kept_and_a_file_without_it_has_prefix(tmp_path):
    columns = dict(small().columns())
    columns["tree_dependence"] = np.array([Dependence.SAMPLED_TOKEN, Dependence.PREFIX], np.uint8)
    file = tmp_path / "forest.safetensors"
    Forest.from_columns(columns).save(file)
    assert Forest.load(file).trees.dependence.tolist() == [1, 0]
    del columns["tree_dependence"]
    save_file(columns, file)
    assert Forest.load(file).trees.dependence.tolist() == [0, 0]
    columns["tree_dependence"] = np.array([0, 2], np.uint8)
    with pytest.raises(InvalidInputError, match="tree 1: dependence 2"):
        Forest.from_columns(columns)


SPOILED = ["path_parent", "path_at", "token_start", "path_start", "mark_pos", "tree_prompt_len"]


@pytest.mark.parametrize("name", SPOILED)
def test_columns_that_contradict_each_other_are_refused(name):
    columns = {key: column.copy() for key, column in small().columns().items()}
    columns[name] = columns[name] + 1
    with pytest.raises(InvalidInputError, match="forest columns"):
        Forest.from_columns(columns)


IMPOSSIBLE = [
    ("path_weight", -1.0, "its weight is not finite or negative"),
    ("path_weight", np.inf, "its weight is not finite or negative"),
    ("token_id", -1, "id or version is negative"),
    ("token_version", -1, "id or version is negative"),
    ("token_logprob", np.nan, "a token has numbers and was not sampled, or the reverse"),
    ("token_entropy", np.inf, "a token has numbers and was not sampled, or the reverse"),
]


@pytest.mark.parametrize(("name", "value", "message"), IMPOSSIBLE)
def test_columns_that_no_call_could_make_are_refused(name, value, message):
    columns = {key: column.copy() for key, column in small().columns().items()}
    is_sampled = columns["token_kind"] == TokenKind.SAMPLED
    columns[name][0 if name == "path_weight" else is_sampled.argmax()] = value
    with pytest.raises(InvalidInputError, match=message):
        Forest.from_columns(columns)


def test_a_missing_column_is_named():
    columns = small().columns()
    del columns["token_kind"]
    with pytest.raises(InvalidInputError, match="token_kind is missing"):
        Forest.from_columns(columns)


def test_selected_trees_come_in_the_given_order():
    forest = small()
    both = forest.select([1, 0])
    assert both.trees.key.tolist() == forest.trees.key.tolist()[::-1]
    again = Forest.concatenate([forest.select([0]), forest.select([1])]).columns()
    for name, column in forest.columns().items():
        np.testing.assert_array_equal(column, again[name], err_msg=name)
    with pytest.raises(InvalidInputError, match="tree 2"):
        forest.select([2])


def test_views_are_read_only_and_rewards_replace_them():
    forest = small()
    with pytest.raises(ValueError, match="read-only"):
        forest.tokens.id[0] = 1
    before = forest.paths.reward
    forest.set_rewards([1, 2, 3])
    assert forest.paths.reward.tolist() == [1, 2, 3]
    assert np.isnan(before).all()
    with pytest.raises(InvalidInputError, match="2 rewards for 3 paths"):
        forest.set_rewards([1, 2])


def test_a_finished_path_takes_no_token():
    forest = core.Forest()
    tree = forest.add_tree(0, np.array([1], np.uint32))
    forest.finish(tree, 0, FinishReason.STOP)
    with pytest.raises(core.InvalidInputError, match="is finished"):
        forest.append_given(tree, 0, np.array([1], np.uint32))
    with pytest.raises(core.InvalidInputError, match="finish reason"):
        forest.finish(tree, 0, 77)


@pytest.mark.parametrize(
    ("trees", "message"),
    [
        (np.array([True, False]), "flatnonzero"),
        ([0.7], "indices"),
        ("0", "indices"),
        ([-1], "tree -1"),
        (np.array([1 << 32]), "tree 4294967296"),
        (np.array([[0]]), "one-dimensional"),
    ],
)
def test_a_selection_that_is_no_list_of_indices_is_refused(trees, message):
    with pytest.raises(InvalidInputError, match=message):
        small().select(trees)


def test_nothing_selected_is_an_empty_forest():
    assert small().select([]).num_trees == 0
    assert Forest.concatenate([]).num_paths == 0


@pytest.mark.parametrize("tree", [-1, 2])
def test_the_prompt_of_a_tree_that_does_not_exist_is_refused(tree):
    with pytest.raises(InvalidInputError, match=f"tree {tree} of a forest of 2"):
        small().prompt_ids(tree)


@pytest.mark.parametrize(
    "make", [copy.copy, copy.deepcopy, lambda f: pickle.loads(pickle.dumps(f))]
)
def test_a_copy_is_equal_and_its_own(make):
    forest = small()
    forest.set_rewards([0.5, 1.0, np.nan])
    other = make(forest)
    for name, column in forest.columns().items():
        np.testing.assert_array_equal(column, other.columns()[name], err_msg=name)
    other.set_rewards([7, 7, 7])
    np.testing.assert_array_equal(forest.select([0, 1]).paths.reward, [0.5, 1.0, np.nan])


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(DataError, match=r"cannot write .*absent"):
        small().save(tmp_path / "absent" / "forest.safetensors")
