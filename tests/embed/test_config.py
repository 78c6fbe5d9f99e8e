"""The configuration through the binding: every field by its name, wrong ones named."""

import numpy as np
import pytest

from treepo.core import InvalidConfigError, Search, SearchConfig

IDS = np.array([1, 2, 3, 4], np.uint32)
SECTIONS = {"branch", "budget", "fallback", "stop", "prune"}


def test_a_configuration_is_its_dict():
    config = SearchConfig(
        width=5,
        branch={"by": "segment_entropy", "temperature": 0.3},
        fallback={"from": "nothing"},
        stop={"strings": ["</answer>"]},
        max_completion_len=40,
        eos_token_ids=(2, 3),
    )
    fields = config.to_dict()
    assert fields["branch"]["temperature"] == 0.3
    assert fields["stop"]["strings"] == ["</answer>"]
    assert config == SearchConfig(**fields)
    assert config != SearchConfig(**fields | {"width": 6})
    assert eval(repr(config)) == config


def test_every_field_can_be_read_by_its_name():
    config = SearchConfig(prune={"window": 9})
    fields = config.to_dict()
    for name, value in fields.items():
        if name != "max_completion_len":
            assert getattr(config, name) == value, name
    assert config.max_completion_len == config.segment_len * config.max_depth
    assert {name for name, value in fields.items() if isinstance(value, dict)} == SECTIONS
    with pytest.raises(AttributeError):
        config.width = 3


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"widht": 3}, "widht: is unknown; did you mean width?"),
        ({"zzz": 3}, "zzz: is unknown; known are branch, branch_factor, "),
        ({"fallback": {"form": "all"}}, "fallback.form: is unknown; did you mean from?"),
        ({"fallback": {1: "all"}}, "fallback.1: is unknown; known are alignment, at, "),
        ({"fallback": "answered"}, "fallback: must be a dict of alignment, at, "),
        ({"branch": None}, "branch: must be a dict of by, "),
        ({"branch": {"by": "size"}}, "branch.by: unknown variant `size`, expected one of `even`, "),
        ({"verdicts": "all"}, "verdicts: unknown variant `all`"),
        ({"width": 0}, "width: must be at least 1, got 0"),
        ({"width": -1}, "width: invalid value: integer `-1`, expected u32"),
        ({"width": 1 << 32}, "width: invalid value: integer `4294967296`, expected u32"),
        ({"width": 1 << 70}, "width: 1180591620717411303424 is out of range"),
        ({"width": 1.0}, "width: invalid type: floating point `1.0`, expected u32"),
        ({"width": "1"}, "width: invalid type: string"),
        ({"width": None}, "width: invalid type: null, expected u32"),
        ({"width": [1]}, "width: invalid type: sequence, expected u32"),
        ({"width": {"a": 1}}, "width: takes no dict"),
        ({"width": object()}, "width: must be a number, a name or a list of these, got <class"),
        ({"progress": float("nan")}, "progress: must be finite, got NaN"),
        ({"branch": {"threshold": 1e300}}, "branch.threshold: must be finite, got inf"),
        ({"prune": {"warmup_quantile": 1.5}}, "prune.warmup_quantile: must be from 0 to 1"),
        ({"eos_token_ids": 3}, "eos_token_ids: invalid type: integer `3`, expected a sequence"),
        ({"eos_token_ids": [-1]}, "eos_token_ids: invalid value: integer `-1`"),
        ({"eos_token_ids": [[1]]}, "eos_token_ids: must be a number"),
        ({"stop": {"strings": "stop"}}, "stop.strings: invalid type: string"),
        ({"stop": {"strings": [""]}}, "stop.strings: got an empty string"),
        ({"branch": {"by": "score"}}, "branch.by: is score, but nobody gives scores"),
    ],
)
def test_a_wrong_name_or_value_is_named(fields, message):
    with pytest.raises(InvalidConfigError) as caught:
        SearchConfig(**fields)
    assert str(caught.value).startswith(message)


def test_numbers_of_numpy_are_numbers():
    config = SearchConfig(
        width=np.int64(3), progress=np.float32(0.5), eos_token_ids=np.array([2, 5], np.int64)
    )
    assert (config.width, config.progress, config.eos_token_ids) == (3, 0.5, [2, 5])


def test_every_preset_has_a_source_and_can_be_changed():
    presets = SearchConfig.presets()
    assert len(presets) == len(dict(presets))
    for name, source in presets:
        fields = SearchConfig.preset(name).to_dict()
        assert SearchConfig(**fields | {"eos_token_ids": [2]}).eos_token_ids == [2]
        assert source
    with pytest.raises(InvalidConfigError, match=r"preset: must be one of treepo, .*got \"grpo\""):
        SearchConfig.preset("grpo")


def test_policies_say_what_the_forks_depend_on():
    config = SearchConfig(fallback={"from": "nothing"})
    assert [policy["name"] for policy in config.policies()] == ["branch"]
    assert config.dependence == "prefix"
    fields = config.to_dict() | {"branch": {"by": "token_entropy"}}
    assert SearchConfig(**fields).dependence == "sampled_token"
    names = [policy["name"] for policy in SearchConfig(verdicts="segments").policies()]
    assert names == ["branch", "fallback", "verdicts"]


def test_replaced_leaves_make_more_paths_than_the_width():
    assert SearchConfig(width=6).max_paths == 6
    assert SearchConfig(width=6, prune={"leaves": "are_replaced"}).max_paths == 12


def test_the_sections_reach_the_search():
    numbers = np.zeros(3, np.float32)
    for strings, num_leaves in (([], 0), (["bc"], 1)):
        config = SearchConfig(width=2, segment_len=8, stop={"strings": strings})
        search = Search(config)
        search.set_texts([b"", b"a", b"b", b"c", b"d"])
        search.add_tree(0, IDS)
        search.complete_segment(0, 0, IDS[:3], numbers, numbers)
        assert (search.forest().columns()["path_finish"] > 0).sum() == num_leaves
