"""The binding refuses what it cannot read as meant: no panic, no silent misreading."""

import numpy as np
import pytest

from treepo import core
from treepo.errors import InvalidInputError
from treepo.forest import Forest

IDS = np.array([1, 2, 3, 4], np.uint32)
NUMBERS = np.full(4, -1.0, np.float32)


def read_only(array):
    array = array.copy()
    array.flags.writeable = False
    return array


BAD_IDS = {
    "a list": [1, 2, 3, 4],
    "signed": IDS.astype(np.int32),
    "64 bits": IDS.astype(np.uint64),
    "floats": NUMBERS,
    "two dimensions": IDS.reshape(2, 2),
    "no dimension": np.array(1, np.uint32),
    "every second": np.arange(8, dtype=np.uint32)[::2],
    "backwards": IDS[::-1],
    "other byte order": IDS.astype(">u4"),
    "nothing": None,
}


@pytest.fixture
def forest():
    forest = core.Forest()
    forest.add_tree(0, IDS)
    return forest


@pytest.fixture
def search():
    return core.Search(core.SearchConfig(segment_len=4, max_depth=1))


@pytest.mark.parametrize("ids", BAD_IDS.values(), ids=BAD_IDS)
def test_token_ids_of_another_form_are_refused(forest, search, ids):
    scheduler = core.Scheduler(core.SearchConfig(), num_blocks=100)
    for call in (
        lambda: forest.add_tree(1, ids),
        lambda: forest.append(0, 0, ids, NUMBERS, NUMBERS),
        lambda: forest.append_given(0, 0, ids),
        lambda: forest.select(ids),
        lambda: search.add_tree(1, ids),
        lambda: scheduler.add_tree(1, ids),
    ):
        with pytest.raises(InvalidInputError, match="one-dimensional array of uint32"):
            call()
    assert (forest.num_trees, forest.num_tokens) == (1, 4)


@pytest.mark.parametrize("numbers", [NUMBERS.astype(np.float64), NUMBERS.reshape(2, 2), IDS])
def test_log_probabilities_of_another_form_are_refused(forest, numbers):
    with pytest.raises(InvalidInputError, match="one-dimensional array of float32"):
        forest.append(0, 0, IDS, numbers, NUMBERS)
    with pytest.raises(InvalidInputError, match="one-dimensional array of float32"):
        forest.append(0, 0, IDS, NUMBERS, numbers)


def test_read_only_arrays_are_read(forest):
    forest.append(0, 0, read_only(IDS), read_only(NUMBERS), read_only(NUMBERS))
    assert forest.num_tokens == 8


def test_a_token_id_that_the_columns_cannot_hold_is_refused(forest, search):
    huge = np.array([5, 1 << 31], np.uint32)
    for call in (
        lambda: forest.add_tree(1, huge),
        lambda: forest.append_given(0, 0, huge),
        lambda: search.add_tree(1, huge),
    ):
        with pytest.raises(InvalidInputError, match="token id 2147483648 is above 2147483647"):
            call()


@pytest.mark.parametrize("value", [-1, 1 << 32, 1 << 70])
def test_integers_out_of_range_are_named(forest, search, value):
    scheduler = core.Scheduler(core.SearchConfig(), num_blocks=100)
    pool = core.BlockPool(4)
    for call in (
        lambda: forest.fork(value, 0, 4),
        lambda: forest.fork(0, 0, value),
        lambda: forest.mark(0, value),
        lambda: forest.finish(0, 0, value),
        lambda: search.tokens(value, 0),
        lambda: scheduler.abort_tree(value),
        lambda: pool.retain(value),
        lambda: core.BlockPool(value),
        lambda: core.SearchConfig(width=value),
        lambda: core.SearchConfig(max_model_len=value),
        lambda: core.SearchConfig(eos_token_ids=[value]),
        lambda: core.Scheduler(core.SearchConfig(), num_blocks=value),
    ):
        with pytest.raises(InvalidInputError, match=f"{value} is not within 0 and"):
            call()


@pytest.mark.parametrize("value", [-1, 1 << 64])
def test_keys_and_seeds_out_of_range_are_named(forest, value):
    with pytest.raises(InvalidInputError, match=f"{value} is not within 0 and {(1 << 64) - 1}"):
        forest.add_tree(value, IDS)
    with pytest.raises(InvalidInputError, match="is not within"):
        core.Search(core.SearchConfig(), seed=value)


@pytest.mark.parametrize("name", ["num_blocks", "max_num_seqs", "max_num_batched_tokens"])
def test_sizes_that_no_machine_can_allocate_are_refused(name):
    sizes = {"num_blocks": 4, name: (1 << 32) - 1}
    with pytest.raises(InvalidInputError, match="4294967295 is more than can be allocated"):
        core.Scheduler(core.SearchConfig(), **sizes)


def test_a_policy_version_that_the_columns_cannot_hold_is_refused(forest):
    with pytest.raises(InvalidInputError, match="version 2147483648 is too large"):
        forest.append(0, 0, IDS, NUMBERS, NUMBERS, version=1 << 31)
    with pytest.raises(InvalidInputError, match="version 2147483648 is too large"):
        core.Scheduler(core.SearchConfig(), num_blocks=4, policy_version=1 << 31)


@pytest.mark.parametrize("value", [1.0, "1", None, [1]])
def test_something_else_for_an_integer_is_a_type_error(forest, value):
    with pytest.raises(TypeError):
        forest.fork(0, 0, value)
    with pytest.raises(TypeError):
        core.SearchConfig(width=value)


@pytest.mark.parametrize("index", [2, (1 << 32) - 1])
def test_trees_and_paths_that_do_not_exist_are_refused(forest, search, index):
    search.add_tree(0, IDS)
    for call in (
        lambda: forest.fork(index, 0, 4),
        lambda: forest.fork(0, index, 4),
        lambda: forest.mark(index, 0),
        lambda: forest.append_given(0, index, IDS),
        lambda: search.tokens(index, 0),
        lambda: search.complete_segment(0, index, IDS, NUMBERS, NUMBERS),
    ):
        with pytest.raises(InvalidInputError):
            call()
    forest.check()


def test_a_segment_of_unlimited_length_has_a_limit_above_0():
    search = core.Search(core.SearchConfig(segment_len=(1 << 32) - 1, max_depth=1))
    search.add_tree(0, IDS)
    assert (search.segments()[:, 2] == (1 << 31) - 1).all()


def plan_buffers():
    scheduler = core.Scheduler(core.SearchConfig(), num_blocks=1000)
    scheduler.add_tree(0, IDS)
    return scheduler, core.PlanBuffers(scheduler)


BAD_TRIPLES = {
    "column by column": lambda a: np.asfortranarray(a),
    "too wide": lambda a: np.zeros((len(a), 4), np.int32),
    "transposed": lambda a: np.zeros((3, len(a)), np.int32),
    "flat": lambda a: a.reshape(-1),
    "64 bits": lambda a: a.astype(np.int64),
    "a part": lambda a: np.zeros((len(a), 6), np.int32)[:, ::2],
    "read-only": read_only,
}


@pytest.mark.parametrize("name", ["copies", "table_updates"])
@pytest.mark.parametrize("change", BAD_TRIPLES.values(), ids=BAD_TRIPLES)
def test_plan_arrays_of_another_layout_are_refused(name, change):
    scheduler, buffers = plan_buffers()
    kept = getattr(buffers, name)
    setattr(buffers, name, change(kept))
    with pytest.raises(InvalidInputError, match=f"plan array {name}"):
        buffers.plan(scheduler)
    setattr(buffers, name, kept)
    assert buffers.plan(scheduler).num_rows > 0


@pytest.mark.parametrize(
    "change",
    [lambda a: np.zeros(2 * len(a), np.int64)[::2], lambda a: a[::-1], lambda a: a.tolist()],
)
def test_plan_arrays_in_pieces_are_refused(change):
    scheduler, buffers = plan_buffers()
    buffers.token_ids = change(buffers.token_ids)
    with pytest.raises(InvalidInputError, match="plan array token_ids"):
        buffers.plan(scheduler)


def test_one_array_for_two_purposes_is_refused():
    scheduler, buffers = plan_buffers()
    buffers.positions = buffers.token_ids
    with pytest.raises(InvalidInputError, match="plan array positions"):
        buffers.plan(scheduler)


@pytest.mark.parametrize(
    "change",
    [
        lambda a: a.astype(np.int64),
        lambda a: a.reshape(1, -1),
        lambda a: np.repeat(a, 2)[::2],
        lambda a: a.astype(">i4"),
        lambda a: a.tolist(),
    ],
)
def test_forest_columns_of_another_form_are_named(forest, change):
    columns = {**forest.columns()}
    columns["token_id"] = change(columns["token_id"])
    with pytest.raises(InvalidInputError, match="forest column token_id must be"):
        core.Forest.from_columns(columns)


def test_a_column_that_is_missing_is_named(forest):
    columns = {**forest.columns()}
    del columns["path_at"]
    with pytest.raises(InvalidInputError, match="forest column path_at is missing"):
        core.Forest.from_columns(columns)


@pytest.mark.parametrize("seed", range(40))
def test_no_change_of_one_number_in_the_columns_is_a_panic(seed):
    rng = np.random.default_rng(seed)
    forest = core.Forest()
    for tree in range(2):
        forest.add_tree(tree, IDS)
        forest.append(tree, 0, IDS, NUMBERS, NUMBERS)
        forest.mark(tree, 0)
        forest.append(tree, forest.fork(tree, 0, 6), IDS, NUMBERS, NUMBERS)
    for _ in range(50):
        columns = {name: column.copy() for name, column in forest.columns().items()}
        name = rng.choice([n for n, column in columns.items() if column.dtype.kind in "iu"])
        limits = np.iinfo(columns[name].dtype)
        values = [limits.min, limits.max, *range(10)]
        columns[name][rng.integers(len(columns[name]))] = values[rng.integers(len(values))]
        try:
            changed = Forest.from_columns(columns)
        except InvalidInputError:
            continue
        changed.nodes()
        for path in range(changed.num_paths):
            changed.token_ids(path)
