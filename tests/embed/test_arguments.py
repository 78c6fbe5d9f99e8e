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


def calls_with(search, value):
    """Every call of the embedding program, with a number in each place."""
    return [
        lambda: search.report(value, 0),
        lambda: search.report(0, value),
        lambda: search.fork(value, 0, 1),
        lambda: search.fork(0, value, 1),
        lambda: search.fork(0, 0, value),
        lambda: search.prune(value, 0),
        lambda: search.prune(0, value),
        lambda: search.prune_subtree(value, 0, 1),
        lambda: search.prune_subtree(0, 0, value),
        lambda: search.rewind(value, 0, 1),
        lambda: search.rewind(0, 0, value),
        lambda: search.tokens(0, value),
    ]


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
        lambda: core.Scheduler(core.SearchConfig(), num_blocks=value),
        lambda: core.Scheduler(core.SearchConfig(), num_blocks=4, age_bias=value),
        lambda: core.Scheduler(core.SearchConfig(), num_blocks=4, admission_percent=value),
        lambda: core.forecast(core.SearchConfig(), rates=[0.5], num_trees=value),
        lambda: core.forecast(core.SearchConfig(), rates=[0.5], num_blocks=value),
        lambda: search.set_policy_version(value),
        lambda: search.abort_tree(value),
        *(call for each in (search, scheduler) for call in calls_with(each, value)),
    ):
        with pytest.raises(InvalidInputError, match=f"{value} is not within 0 and"):
            call()


@pytest.mark.parametrize("change", [{"window": 0}, {"num_heads": 0}, {"num_kv_heads": 0}])
def test_layers_that_see_nothing_are_refused(change):
    layer = {"num_heads": 4, "num_kv_heads": 2, "key_dim": 8, "value_dim": 8}
    with pytest.raises(InvalidInputError):
        core.AttentionLayer(**{**layer, "scaling": 1.0, "keys": 0, "values": 0, **change})


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
    for call in calls_with(core.Search(core.SearchConfig()), value):
        with pytest.raises(TypeError):
            call()
    with pytest.raises(TypeError):
        core.Scheduler(core.SearchConfig(), num_blocks=4).set_priority(0, value)


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
        lambda: search.report(0, index),
        lambda: search.fork(0, index, 4),
        lambda: search.prune(index, 0),
        lambda: search.prune_subtree(0, index, 4),
        lambda: search.rewind(index, 0, 4),
        lambda: search.abort_tree(index),
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


@pytest.mark.parametrize("at", [0, 3, 5, (1 << 32) - 1])
def test_positions_outside_the_completion_are_refused(at):
    for search in (
        core.Search(core.SearchConfig()),
        core.Scheduler(core.SearchConfig(), num_blocks=100),
    ):
        search.add_tree(0, IDS)
        for call in (search.fork, search.prune_subtree, search.rewind):
            with pytest.raises(InvalidInputError, match=rf"at {at}: the position lies outside 4"):
                call(0, 0, at)
        search.check()


def test_an_unknown_verdict_and_a_score_that_is_not_finite_are_named(search):
    with pytest.raises(InvalidInputError, match='verdict "perhaps" is unknown; give "continue"'):
        search.report(0, 0, "perhaps")
    search = core.Search(core.SearchConfig(segment_len=1, verdicts="segments"))
    search.add_tree(0, IDS)
    search.complete_segment(0, 0, IDS[:1], NUMBERS[:1], NUMBERS[:1])
    assert search.awaits_verdicts()
    for score in (float("nan"), float("inf"), 1e300):
        with pytest.raises(InvalidInputError, match="report a finite one"):
            search.report(0, 0, score=score)
    with pytest.raises(TypeError):
        search.report(0, 0, 1)
    with pytest.raises(TypeError):
        search.report(0, 0, score="high")
    search.report(0, 0, "stop", score=float("nan"))
    with pytest.raises(InvalidInputError, match="does not wait for a verdict"):
        search.report(0, 0)


@pytest.mark.parametrize("make", [core.Search, lambda c: core.Scheduler(c, num_blocks=100)])
def test_texts_are_bytes_and_come_before_the_first_tree(make):
    search = make(core.SearchConfig(stop={"strings": ["ab"]}))
    with pytest.raises(core.InvalidConfigError, match=r"stop\.strings"):
        search.add_tree(0, IDS)
    for texts in (["a", "b"], [b"a", None], [b"a", 1], [bytearray(b"a")]):
        with pytest.raises(InvalidInputError, match="give a bytes object for each token id"):
            search.set_texts(texts)
    with pytest.raises(TypeError):
        search.set_texts(None)
    search.set_texts(iter([b"", b"a", b"\xff", b"b", b""]))
    search.add_tree(0, IDS)
    with pytest.raises(InvalidInputError, match="before the first tree"):
        search.set_texts([b"a"])


@pytest.mark.parametrize("value", [1 << 31, -(1 << 31) - 1, 1 << 70])
def test_a_priority_out_of_range_is_named(value):
    scheduler = core.Scheduler(core.SearchConfig(), num_blocks=100)
    scheduler.add_tree(0, IDS)
    with pytest.raises(
        InvalidInputError, match=f"{value} is not within -2147483648 and 2147483647"
    ):
        scheduler.set_priority(0, value)
    for extreme in (-(1 << 31), (1 << 31) - 1):
        scheduler.set_priority(0, extreme)
        scheduler.check()
    with pytest.raises(InvalidInputError, match="tree 1"):
        scheduler.set_priority(1, 0)


def test_groups_need_an_open_plan_and_arrays_of_their_shape():
    scheduler, buffers = plan_buffers()
    groups = core.GroupBuffers(scheduler)
    with pytest.raises(InvalidInputError, match="there is no plan"):
        groups.group(scheduler)
    assert buffers.plan(scheduler).num_rows > 0
    kept = groups.groups
    for name in BAD_TRIPLES.keys() - {"too wide"}:
        groups.groups = BAD_TRIPLES[name](kept)
        with pytest.raises(InvalidInputError, match="plan array groups"):
            groups.group(scheduler)
    groups.groups, groups.row_order = kept, groups.row_order[:0]
    with pytest.raises(core.BufferTooSmallError, match="row_order has 0 elements"):
        groups.group(scheduler)


@pytest.mark.parametrize("name", ["report", "prune", "fork", "rewind", "prune_subtree"])
def test_nothing_is_changed_while_a_plan_is_open(name):
    scheduler, buffers = plan_buffers()
    buffers.plan(scheduler)
    positions = {"report": (), "prune": ()}.get(name, (4,))
    with pytest.raises(InvalidInputError, match="commit the open plan before"):
        getattr(scheduler, name)(0, 0, *positions)
    for call in (scheduler.to_bytes, lambda: scheduler.abort_tree(0)):
        with pytest.raises(InvalidInputError, match="commit the open plan before"):
            call()


@pytest.mark.parametrize(
    "kind", [core.Search, core.Scheduler], ids=["of a search", "of a scheduler"]
)
def test_damaged_bytes_are_refused(kind):
    limits = {"num_blocks": 100} if kind is core.Scheduler else {}
    made = kind(core.SearchConfig(width=2), **limits)
    made.add_tree(0, IDS)
    data = made.to_bytes()
    kind.from_bytes(data).check()
    other = core.Search if kind is core.Scheduler else core.Scheduler
    damaged = [b"", data[:-1], data[1:], data + b"\0", data[: len(data) // 2]]
    damaged += [data[:i] + bytes([data[i] ^ 1]) + data[i + 1 :] for i in range(len(data))]
    for each in damaged:
        with pytest.raises(InvalidInputError):
            kind.from_bytes(each)
    with pytest.raises(InvalidInputError):
        other.from_bytes(data)
    for wrong in ("text", None, 1, [1]):
        with pytest.raises(TypeError):
            kind.from_bytes(wrong)


@pytest.mark.parametrize("rates", [[], [-0.1], [1.5], [0.5, float("nan")]])
def test_rates_that_are_no_probabilities_are_refused(rates):
    with pytest.raises(core.InvalidConfigError, match="rates"):
        core.forecast(core.SearchConfig(), rates=rates)


def test_a_forecast_names_what_is_too_small():
    config = core.SearchConfig(segment_len=64, max_depth=2)
    with pytest.raises(core.PoolTooSmallError, match="pool has 2"):
        core.forecast(config, rates=[0.5], num_blocks=3)
    for name in ("num_trees", "prompt_len", "block_size", "max_num_seqs"):
        with pytest.raises(core.InvalidConfigError, match=f"{name}: must be .*got 0"):
            core.forecast(config, rates=[0.5], **{name: 0})
    with pytest.raises(TypeError):
        core.forecast(config, rates="often")


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
