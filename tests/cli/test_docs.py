"""What the documentation shows runs as it stands there."""

import re
from pathlib import Path

import numpy as np
import pytest

from treepo.cli.options import describe
from treepo.config import TrainConfig

DOCS = Path(__file__).resolve().parents[2] / "docs"


def blocks(file, language):
    return re.findall(rf"```{language}\n(.*?)```", (DOCS / file).read_text(), re.DOTALL)


@pytest.fixture(scope="module")
def search_names():
    """The names that the first example of embedding defines."""
    names = {}
    exec(blocks("embedding.md", "python")[0], names)
    return names


def test_example_of_the_search_grows_a_tree(search_names):
    assert search_names["forest"].num_paths == 8


def test_example_of_the_scheduler_runs_with_an_engine_in_its_gap(search_names):
    engine = """\
    token_ids = np.full(sizes.num_samples, 2, np.uint32)
    logprobs = entropies = np.zeros(sizes.num_samples, np.float32)
"""
    code = re.sub(r" +\.\.\. .*\n", engine, blocks("embedding.md", "python")[1])
    names = dict(search_names)
    exec(code, names)
    assert np.diff(names["forest"].trees.path_start).tolist() == [8]


def test_example_of_a_config_file_is_read(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(blocks("configuration.md", "yaml")[0])
    config = TrainConfig.from_yaml(file, ["search.width=4"])
    assert config.search.width == 4
    assert config.search.segment_len == 128
    assert config.optimizer.learning_rate == 1e-6


def test_config_keys_of_the_documentation_exist():
    keys = describe(TrainConfig(), TrainConfig())
    text = "".join(file.read_text() for file in DOCS.glob("*.md"))
    named = re.findall(
        r"`((?:search|engine|optimizer|reward|advantage|loss|eval|sampling)\.\w+)", text
    )
    assert len(named) > 10
    for key in named:
        assert f"  {key}=" in keys, key
