import subprocess
import sys

import pytest

from treepo.config import (
    Dtype,
    Fallback,
    OptimizerConfig,
    SearchConfig,
    TrainConfig,
)
from treepo.errors import InvalidConfigError


def test_dictionary_round_trip_gives_an_equal_config():
    config = TrainConfig(
        search=SearchConfig(width=3, fallback=Fallback.NONE),
        optimizer=OptimizerConfig(betas=(0.5, 0.75)),
    )
    assert TrainConfig.from_dict(config.to_dict()) == config


def test_yaml_round_trip_gives_an_equal_config(tmp_path):
    config = TrainConfig.load(overrides=["engine.dtype=bfloat16", "search.max_completion_len=40"])
    file = tmp_path / "config.yaml"
    file.write_text(config.to_yaml())
    assert TrainConfig.from_yaml(file) == config


@pytest.mark.parametrize(
    "words",
    [["search.width=16"], ["--search.width=16"], ["--search.width", "16"]],
)
def test_every_spelling_of_an_override_is_the_same(words):
    assert TrainConfig.load(overrides=words).search.width == 16


def test_later_override_wins_over_earlier_one_and_over_the_file(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("search: {width: 4, max_depth: 3}\n")
    config = TrainConfig.from_yaml(file, ["search.width=5", "search.width=6"])
    assert (config.search.width, config.search.max_depth) == (6, 3)


@pytest.mark.parametrize(
    ("word", "read"),
    [
        ("optimizer.betas=[0.5, 0.75]", lambda c: c.optimizer.betas == (0.5, 0.75)),
        ("optimizer.learning_rate=1e-6", lambda c: c.optimizer.learning_rate == 1e-6),
        ("optimizer.learning_rate=0", lambda c: c.optimizer.learning_rate == 0.0),
        ("reward.shuffle=true", lambda c: c.reward.shuffle is True),
        ("search.fallback=none", lambda c: c.search.fallback is Fallback.NONE),
        ("engine.dtype=bfloat16", lambda c: c.engine.dtype is Dtype.BFLOAT16),
        ("num_threads=none", lambda c: c.num_threads is None),
        ("--max-sampling-batches=3", lambda c: c.max_sampling_batches == 3),
    ],
)
def test_override_is_read_as_the_type_of_its_field(word, read):
    assert read(TrainConfig.load(overrides=[word]))


def test_yaml_number_without_a_dot_is_a_number(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("optimizer: {learning_rate: 1e-6}\n")
    assert TrainConfig.from_yaml(file).optimizer.learning_rate == 1e-6


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("search.widht=3", "unknown config key 'search.widht'.*did you mean 'search.width'"),
        ("serach.width=3", "unknown config key 'serach'.*did you mean 'search'"),
        ("search.width=0", "search.width must be at least 1, got 0"),
        ("search.width=wide", "search.width must be a whole number, got 'wide'"),
        ("search.width=2.5", "search.width must be a whole number"),
        ("reward.shuffle=maybe", "reward.shuffle must be true or false"),
        ("optimizer.betas=0.9", "optimizer.betas must be 2 values"),
        ("optimizer.betas=0.9,1.5", r"optimizer.betas must lie in \[0, 1\)"),
        ("optimizer.learning_rate=nan", "optimizer.learning_rate must be a finite number"),
        ("search.fallback=some", "search.fallback must be one of answered, none"),
        ("search=3", "'search' is a section"),
        ("seed.first=3", "'seed' is a value, not a section"),
        ("nonsense", "expected key=value, got 'nonsense'"),
        ("--seed", "option '--seed' needs a value"),
    ],
)
def test_bad_override_is_refused_with_its_path(word, message):
    with pytest.raises(InvalidConfigError, match=message):
        TrainConfig.load(overrides=[word])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"search": {"wdth": 3}}, "section 'search'; did you mean 'search.width'"),
        ({"search": 3}, "search: expected a mapping"),
        ({"search": {"width": True}}, "search.width must be a whole number, got True"),
        ({"model": {"path": 3}}, "model.path must be a text"),
    ],
)
def test_bad_mapping_is_refused_with_its_path(data, message):
    with pytest.raises(InvalidConfigError, match=message):
        TrainConfig.from_dict(data)


@pytest.mark.parametrize(
    ("text", "message"),
    [("[1, 2]", "must hold a mapping"), ("a: [", "is not valid YAML")],
)
def test_bad_yaml_file_is_refused_by_name(tmp_path, text, message):
    file = tmp_path / "config.yaml"
    file.write_text(text)
    with pytest.raises(InvalidConfigError, match=f"config.yaml {message}"):
        TrainConfig.from_yaml(file)


def test_enum_values_and_lists_are_normalised_on_construction():
    assert SearchConfig(fallback="none").fallback is Fallback.NONE
    assert OptimizerConfig(betas=[0, 0.5]).betas == (0.0, 0.5)


def test_replace_checks_the_new_values():
    with pytest.raises(InvalidConfigError, match="width must be at least 1"):
        SearchConfig().replace(width=0)


def test_a_config_that_names_a_model_starts_from_the_defaults_for_models():
    config = TrainConfig.load(overrides=["model.path=somewhere", "num_steps=3"])
    expected = TrainConfig.for_model("somewhere").replace(num_steps=3)
    assert config == expected
    assert config.optimizer.learning_rate < TrainConfig().optimizer.learning_rate


def test_flat_search_forks_at_the_prompt_only():
    flat = SearchConfig.flat(5, 30)
    assert (flat.width, flat.initial_divergence, flat.completion_len) == (5, 5, 30)


def test_completion_len_is_the_smaller_of_both_limits():
    assert SearchConfig(segment_len=9, max_depth=7).completion_len == 63
    assert SearchConfig(segment_len=9, max_depth=7, max_completion_len=57).completion_len == 57


def test_core_accepts_the_search_config_and_gives_it_back():
    config = SearchConfig(width=3, initial_divergence=8, segment_len=5, max_depth=2)
    core_config = config.to_core((1, 2), 50)
    assert (core_config.width, core_config.segment_len, core_config.max_depth) == (3, 5, 2)
    assert list(core_config.eos_token_ids) == [1, 2]


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("sampling.temperature=0", "sampling.temperature must be above 0 to train"),
        ("sampling.top_p=0.9", "sampling.top_k and sampling.top_p must be off"),
        ("sampling.top_k=5", "sampling.top_k and sampling.top_p must be off"),
    ],
)
def test_greedy_and_truncated_sampling_are_refused_only_to_train(word, message):
    config = TrainConfig.load(overrides=[word])
    with pytest.raises(InvalidConfigError, match=message):
        config.require_trainable()


def test_import_of_config_loads_neither_torch_nor_yaml():
    code = "import sys, treepo.config; sys.exit(any(x in sys.modules for x in ('torch', 'yaml')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
