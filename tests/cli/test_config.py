import re
import subprocess
import sys

import pytest

from treepo import core
from treepo.config import (
    BranchBy,
    BranchConfig,
    Dtype,
    FallbackAt,
    FallbackConfig,
    FallbackFrom,
    OptimizerConfig,
    PruneBy,
    PruneConfig,
    SearchConfig,
    StopConfig,
    TrainConfig,
    Verdicts,
)
from treepo.config.text import load_yaml
from treepo.errors import InvalidConfigError


def test_dictionary_round_trip_gives_an_equal_config():
    config = TrainConfig(
        search=SearchConfig(width=3, fallback=FallbackConfig(from_=FallbackFrom.NOTHING)),
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
        ("search.fallback=none", lambda c: c.search.fallback.from_ is FallbackFrom.NOTHING),
        ("search.fallback=all", lambda c: c.search.fallback.from_ is FallbackFrom.ALL),
        ("search.fallback.from=all", lambda c: c.search.fallback.from_ is FallbackFrom.ALL),
        ("search.fallback.at=window", lambda c: c.search.fallback.at is FallbackAt.WINDOW),
        ("search.branch.by=segment_entropy", lambda c: c.search.branch.by == "segment_entropy"),
        ("search.prune.threshold=-0.5", lambda c: c.search.prune.threshold == -0.5),
        ("search.stop.strings=Answer: ", lambda c: c.search.stop.strings == ("Answer: ",)),
        (r'search.stop.strings=["a,b", "\n"]', lambda c: c.search.stop.strings == ("a,b", "\n")),
        ("search.stop.strings=none", lambda c: c.search.stop.strings == ()),
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


def test_yaml_on_and_off_are_names(tmp_path):
    file = tmp_path / "config.yaml"
    for name in ("on", "off"):
        file.write_text(f"search: {{budget: {{transfer: {name}}}}}\n")
        assert TrainConfig.from_yaml(file).search.budget.transfer == name
    config = TrainConfig.load(overrides=["search.budget.transfer=off"])
    file.write_text(config.to_yaml())
    assert TrainConfig.from_yaml(file) == config


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
        ("search.fallback=some", "search.fallback.from must be one of nothing, answered"),
        ("search.fallback.form=all", "did you mean 'search.fallback.from'"),
        ("search.branch=even", "'search.branch' is a section; set its keys, like search.branch.by"),
        ("search.branch.temperature=0", "search.branch.temperature must be above 0"),
        ("search.branch.by=score", "search.branch.by is score, .* set verdicts to segments"),
        ("search.max_branch_factor=1", "search.max_branch_factor must be at least branch_factor"),
        ("search.stop.strings=[1]", r"search.stop.strings\[0\] must be a text, got 1"),
        ("search.stop.strings=[1", "search.stop.strings is no JSON list"),
        ('search.stop.strings=[""]', "search.stop.strings holds an empty text"),
        ("search.stop.repetition_count=1", "search.stop.repetition_count must be at least 2"),
        ("search.prune.warmup_quantile=2", "search.prune.warmup_quantile must be at most 1"),
        ("reward.timeout_s=1000001", "reward.timeout_s must be at most 1000000"),
        ("eval.num_samples=1000001", "eval.num_samples must be at most 1000000"),
        ("reward.overlong_buffer=64", "reward.overlong_buffer must be at most 63, got 64"),
        ("search.preset=grpo", 'search.preset must be one of treepo, .*, got "grpo"'),
        ("search.max_completion_len=64", r"search\.max_completion_len = 64 is above .* = 63"),
        ("update.max_tokens_per_part=4097", "update.max_tokens_per_part must be at most 4096"),
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
    [
        ("[1, 2]", "must hold a mapping"),
        ("a: [", "is not valid YAML"),
        ("{[1, 2]: 3}", "is not valid YAML"),
        ("seed: 1\nseed: 2", "is not valid YAML: line 2: the key 'seed' is there twice"),
        ("search:\n  width: 3\n  width: 4", ".* line 3: the key 'width' is there twice"),
    ],
)
def test_bad_yaml_file_is_refused_by_name(tmp_path, text, message):
    file = tmp_path / "config.yaml"
    file.write_text(text)
    with pytest.raises(InvalidConfigError, match=f"config.yaml {message}"):
        TrainConfig.from_yaml(file)


def test_without_the_yaml_package_reading_and_writing_say_how_to_get_it(tmp_path, monkeypatch):
    file = tmp_path / "config.yaml"
    file.write_text("seed: 1\n")
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(InvalidConfigError, match="pip install pyyaml"):
        load_yaml(file)
    with pytest.raises(InvalidConfigError, match="pip install pyyaml"):
        TrainConfig().to_yaml()


def test_enum_values_and_lists_are_normalised_on_construction():
    assert SearchConfig(fallback="none").fallback.from_ is FallbackFrom.NOTHING
    assert SearchConfig(fallback={"from": "all"}).fallback.from_ is FallbackFrom.ALL
    assert OptimizerConfig(betas=[0, 0.5]).betas == (0.0, 0.5)


def test_one_text_is_a_list_of_one(tmp_path):
    assert StopConfig(strings="x").strings == ("x",)
    file = tmp_path / "config.yaml"
    file.write_text("search: {stop: {strings: 'Answer: '}}\n")
    assert TrainConfig.from_yaml(file).search.stop.strings == ("Answer: ",)


def test_keys_of_a_section_leave_its_others_as_they_were():
    config = TrainConfig.for_model("p").replace(optimizer={"weight_decay": 0.1})
    assert config.optimizer == OptimizerConfig(learning_rate=1e-6, weight_decay=0.1)
    search = SearchConfig(width=3, branch=BranchConfig(prefer="high"))
    changed = TrainConfig(search=search).replace(search={"branch": {"copies": 3}}).search
    assert changed == search.replace(branch=BranchConfig(prefer="high", copies=3))


def test_keys_of_a_section_in_a_constructor_leave_its_defaults():
    for config in (
        TrainConfig(search={"width": 4}),
        TrainConfig.from_dict({"search": {"width": 4}}),
    ):
        search = config.search
        assert (search.width, search.segment_len, search.max_depth) == (4, 9, 7)


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


def test_defaults_are_the_cores():
    defaults = core.SearchConfig(max_model_len=50).to_dict()
    assert SearchConfig().to_core((), 50).to_dict() == defaults


def test_every_key_of_the_core_has_a_key_of_the_same_name():
    def names(values):
        return {k: names(v) if isinstance(v, dict) else None for k, v in values.items()}

    ours, theirs = names(SearchConfig().to_dict()), names(core.SearchConfig().to_dict())
    of_the_model_and_the_run = {"max_model_len", "eos_token_ids", "progress"}
    assert {**ours, **dict.fromkeys(of_the_model_and_the_run)} == {**theirs, "preset": None}


@pytest.mark.parametrize("preset", [name for name, _ in core.SearchConfig.presets()])
def test_preset_has_the_values_of_the_core(preset):
    values = core.SearchConfig.preset(preset).to_dict()
    assert SearchConfig(preset=preset).to_core((), values["max_model_len"]).to_dict() == values


def test_values_beside_a_preset_win_also_where_they_equal_the_defaults():
    config = SearchConfig(preset="treepo", width=8)
    assert (config.width, config.segment_len, config.max_initial_divergence) == (8, 512, 8)
    assert SearchConfig().replace(preset="treepo", width=8) == config
    assert TrainConfig.load(overrides=["search.width=8", "search.preset=treepo"]).search == config


def test_keys_of_a_section_beside_a_preset_leave_its_others():
    search = {"preset": "treepo_released", "fallback": {"window": 64}, "stop": {"boxed": "stops"}}
    config = TrainConfig.load(data={"search": search}).search
    assert (config.fallback.at, config.fallback.window) == (FallbackAt.WINDOW, 64)
    assert (config.stop.boxed, config.stop.repetition) == ("stops", "bytes")


def test_keys_of_a_section_beside_a_preset_leave_its_others_in_python_too():
    preset = SearchConfig(preset="treerl").branch
    branch = SearchConfig(preset="treerl", branch={"copies": 1}).branch
    assert (preset.by, preset.copies) == (BranchBy.TOKEN_SURPRISAL, 2)
    assert branch == preset.replace(copies=1)


def test_preset_on_the_command_line_replaces_the_search_of_the_file():
    data = {"search": {"width": 5, "max_depth": 3}}
    config = TrainConfig.load(data=data, overrides=["search.preset=flat"])
    assert config.search == SearchConfig(preset="flat")


def test_preset_is_written_out_and_read_back(tmp_path):
    config = TrainConfig.load(overrides=["search.preset=treepo", "search.width=8"])
    file = tmp_path / "config.yaml"
    file.write_text(config.to_yaml())
    assert "segment_len: 512" in file.read_text()
    assert TrainConfig.from_yaml(file) == config


def test_short_form_in_a_file_and_a_key_of_its_section_on_the_command_line_add_up():
    data = {"search": {"fallback": "none"}}
    config = TrainConfig.load(data=data, overrides=["search.fallback.window=3"])
    assert config.search.fallback == FallbackConfig(from_=FallbackFrom.NOTHING, window=3)


def test_policies_reach_the_core_under_their_names():
    config = SearchConfig(
        branch=BranchConfig(by=BranchBy.SCORE),
        prune=PruneConfig(by=PruneBy.SCORE, threshold=0.25),
        stop=StopConfig(strings=("x",)),
        verdicts=Verdicts.SEGMENTS,
    )
    values = config.to_core((3,), 50, progress=0.5).to_dict()
    assert (values["branch"]["by"], values["prune"]["threshold"]) == ("score", 0.25)
    assert (values["stop"]["strings"], values["verdicts"]) == (["x"], "segments")
    assert (values["progress"], values["eos_token_ids"]) == (0.5, [3])


def test_only_rules_about_text_need_texts():
    assert not SearchConfig(stop=StopConfig(repetition="tokens")).needs_texts
    for stop in ({"strings": ["x"]}, {"boxed": "stops"}, {"repetition": "bytes"}):
        assert SearchConfig(stop=stop).needs_texts


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("search.verdicts=segments", "search.verdicts must be nothing to train"),
        ("sampling.temperature=0", "sampling.temperature must be above 0 to train"),
        ("sampling.top_p=0.9", "sampling.top_k, sampling.top_p and sampling.min_p must be off"),
        ("sampling.top_k=5", "sampling.top_k, sampling.top_p and sampling.min_p must be off"),
        ("sampling.min_p=0.1", "sampling.top_k, sampling.top_p and sampling.min_p must be off"),
    ],
)
def test_what_cannot_be_trained_with_is_refused_only_to_train(word, message):
    config = TrainConfig.load(overrides=[word])
    with pytest.raises(InvalidConfigError, match=message):
        config.require_trainable()


def test_import_of_config_loads_neither_torch_nor_yaml():
    code = "import sys, treepo.config; sys.exit(any(x in sys.modules for x in ('torch', 'yaml')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("text", "words", "read"),
    [
        (
            "reward: {overlong_buffer: 512}",
            ["model.path=x"],
            lambda c: c.reward.overlong_buffer == c.search.completion_len == 512,
        ),
        (
            "{model: {path: x}, search: {max_completion_len: 1000}}",
            ["search.max_depth=64"],
            lambda c: c.search.completion_len == 1000,
        ),
        (
            "search: {fallback: none}",
            ["search.fallback.window=3"],
            lambda c: c.search.fallback == FallbackConfig(from_=FallbackFrom.NOTHING, window=3),
        ),
        (
            "search: {fallback: {window: 3}}",
            ["search.fallback=none"],
            lambda c: c.search.fallback == FallbackConfig(from_=FallbackFrom.NOTHING, window=3),
        ),
        (
            "search: {fallback: none, max_completion_len: 63}",
            ["search.preset=flat"],
            lambda c: c.search == SearchConfig(preset="flat"),
        ),
    ],
)
def test_file_and_command_line_are_checked_together(tmp_path, text, words, read):
    file = tmp_path / "run.yaml"
    file.write_text(text)
    assert read(TrainConfig.from_yaml(file, words))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("reward: {overlong_buffer: 512}", "reward.overlong_buffer must be at most 63, got 512"),
        (
            "{model: {path: x}, search: {max_completion_len: 1000}}",
            "search.max_completion_len = 1000 is above segment_len x max_depth = 512",
        ),
    ],
)
@pytest.mark.parametrize("words", [[], ["seed=3"]])
def test_file_that_needs_the_command_line_to_be_a_config_is_named_without_it(
    tmp_path, text, message, words
):
    file = tmp_path / "run.yaml"
    file.write_text(text)
    with pytest.raises(InvalidConfigError) as caught:
        TrainConfig.from_yaml(file, words)
    assert str(caught.value).startswith(f"{file}: {message}")


@pytest.mark.parametrize("word", ["search.width=0", "search.widht=3", "search.max_depth=2"])
def test_mistake_of_the_command_line_is_not_put_down_to_the_file(tmp_path, word):
    file = tmp_path / "run.yaml"
    file.write_text("search: {segment_len: 9, max_completion_len: 63}")
    with pytest.raises(InvalidConfigError) as caught:
        TrainConfig.from_yaml(file, [word])
    assert str(caught.value).startswith(("search.", "unknown config key 'search.widht'"))


@pytest.mark.parametrize("text", ["search: treepo", "search: {branch: even}"])
def test_section_of_a_file_that_is_none_is_refused_also_beside_keys_of_the_command_line(
    tmp_path, text
):
    file = tmp_path / "run.yaml"
    file.write_text(text)
    with pytest.raises(InvalidConfigError) as caught:
        TrainConfig.from_yaml(file, ["search.branch.copies=2"])
    assert re.fullmatch(rf"{re.escape(str(file))}: .*: expected a mapping.*", str(caught.value))


@pytest.mark.parametrize(
    ("changes", "limit"),
    [
        ({}, 100),
        ({"update": {"parts": "keep"}}, 100),
        ({"update": {"max_tokens_per_part": 7}}, 7),
        ({"update": {"activations": "recompute"}}, None),
        ({"update": {"weights": "sharded"}}, None),
        ({"update": {"parts": "keep"}, "loss": {"ratio": "trajectory"}}, None),
    ],
)
def test_trees_above_a_micro_batch_are_cut_where_no_setting_excludes_it(changes, limit):
    config = TrainConfig(max_tokens_per_microbatch=100, **changes)
    assert config.cutting_update == config.update.replace(max_tokens_per_part=limit)
