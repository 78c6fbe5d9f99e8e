"""What the documentation shows runs as it stands there."""

import re
from enum import EnumMeta
from pathlib import Path

import numpy as np
from tiny_runs import metrics_of

from treepo import config, core
from treepo.cli.options import describe
from treepo.config import Dtype, Schedule, TrainConfig

DOCS = Path(__file__).resolve().parents[2] / "docs"


def blocks(file, language):
    return re.findall(rf"```{language}\n(.*?)```", (DOCS / file).read_text(), re.DOTALL)


def test_example_of_a_config_file_is_read(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(blocks("configuration.md", "yaml")[0])
    read = TrainConfig.from_yaml(file, ["search.width=4"])
    assert read.search.width == 4
    assert read.search.segment_len == 128
    assert read.optimizer.learning_rate == 1e-6


def test_config_keys_of_the_documentation_exist():
    keys = describe(TrainConfig(), TrainConfig())
    text = "".join(file.read_text() for file in DOCS.glob("*.md"))
    named = re.findall(
        r"`((?:search|engine|optimizer|reward|advantage|loss|eval|sampling)\.[\w.]+)`", text
    )
    assert len(named) > 10
    for key in named:
        assert f"  {key}=" in keys, key


def test_every_key_is_documented():
    keys = re.findall(r"^  ([\w.]+)=", describe(TrainConfig(), TrainConfig()), re.MULTILINE)
    assert len(keys) > 100
    text = (DOCS / "configuration.md").read_text()
    missing = []
    for key in keys:
        *_, name = key.split(".")
        if f"`{key}`" not in text and f"`{name}`" not in text:
            missing.append(key)
    assert missing == []


def test_every_value_of_a_rule_and_every_preset_is_documented():
    text = (DOCS / "configuration.md").read_text()
    rules = vars(config).values()
    enums = [x for x in rules if isinstance(x, EnumMeta) and x not in (Dtype, Schedule)]
    values = [member.value for enum in enums for member in enum]
    assert len(values) > 40
    presets = [name for name, _ in core.SearchConfig.presets()]
    left_out = {"ignored", "nothing", "off", "on"}
    for value in {*values, *presets} - left_out:
        assert f"`{value}`" in text, value


def test_example_of_a_judge_gives_verdicts():
    names = {}
    exec(blocks("configuration.md", "python")[0], names)
    judge = names["judge"]
    assert judge(0, np.arange(9, dtype=np.uint32)) == names["Continue"](score=0.0)
    assert judge(0, np.zeros(9, dtype=np.uint32)) == names["Prune"]()


def test_every_metric_of_the_documentation_is_in_a_run(finished):
    section = (DOCS / "training.md").read_text().partition("TRL's names")[2]
    section = section.partition("## Controls")[0]
    prose, _, table = section.partition("| metric | meaning |")
    cells = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
    names = re.findall("`([^`]+)`", " ".join([prose, *cells]))
    assert len(names) > 35
    keys = set().union(*metrics_of(finished[0].run_dir))
    for name in names:
        pattern = re.escape(name).replace(r"\*", ".+").replace("NAME", "count_ones")
        assert any(re.fullmatch(pattern, key) for key in keys), name
