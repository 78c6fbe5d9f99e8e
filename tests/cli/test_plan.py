import json
import re
import subprocess
import sys

import pytest

from treepo import core
from treepo.cli.main import main
from treepo.cli.shapes import ModelShape, model_shape
from treepo.config import Dtype
from treepo.tasks import embedded


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")


def planned(capsys, *words):
    """Runs `treepo plan --json` and returns its object."""
    assert main(["plan", *map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_plan_names_what_a_tree_decodes_returns_and_shares(capsys):
    assert main(["plan", "--rates", "0,0.1,0.3"]) == 0
    text = capsys.readouterr().out
    assert re.search(r"^search +width 8, 7 segments of 9 tokens; no preset$", text, re.M)
    assert re.search(r"^assumes +16 prompts of 8 tokens at once; .* 0, 0\.1, 0\.3 ", text, re.M)
    decoded, returned, bound = (
        float(re.search(pattern, text, re.M)[1])
        for pattern in (r"^decodes +(\d+)", r"^returns +(\d+)", r"^speed-up +at most (\d\.\d+)")
    )
    assert bound == pytest.approx(returned / decoded, abs=0.02)
    assert re.search(r"^memory +\d+ KV blocks of 16 tokens at the peak, [\d.e-]+ GiB", text, re.M)
    assert re.search(r"^policy +fallback \(sampled_token\)", text, re.M)
    assert re.search(r"^weights +the mean of rewards is biased", text, re.M)


def test_lines_fit_the_terminal(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "70")
    assert main(["plan", "--trees", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 70
    assert sum(line.startswith(" " * 11) for line in lines) > 2


def test_plan_loads_no_torch():
    code = (
        "import sys\nfrom treepo.cli.main import main\n"
        "code = main(['plan', 'search.width=4', '--trees', '2'])\n"
        "sys.exit(code or 'torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_object_agrees_with_the_core(capsys):
    plan = planned(capsys, "search.width=4", "--rates", "0.2", "--prompt-len", 20, "--trees", 5)
    search = core.SearchConfig(width=4, segment_len=9, max_depth=7, max_model_len=256)
    assert plan["forecast"] == core.forecast(search, rates=[0.2], prompt_len=20, num_trees=5)
    assert plan["assumes"] == {"rates": [0.2], "prompt_len": 20, "num_trees": 5}
    assert plan["search"]["width"] == 4


def test_paths_that_end_early_share_more_where_later_ones_replace_them(capsys):
    never = planned(capsys, "--rates", "0")
    often = planned(capsys, "--rates", "0.4")
    assert never["forecast"]["leaves_stop"] == 0
    assert often["forecast"]["leaves_stop"] > often["forecast"]["leaves_depth"]
    assert often["forecast"]["fallbacks"] > never["forecast"]["fallbacks"] == 0


def test_stop_rules_are_in_the_rates(capsys):
    stop = ["search.stop.repetition=tokens", "search.stop.repetition_len=1"]
    plain, stopping = planned(capsys), planned(capsys, *stop, "search.stop.strings=x")
    assert stopping["forecast"] == plain["forecast"]
    assert stopping["search"]["stop"]["strings"] == ["x"]


def test_flat_rollout_shares_nothing_and_has_no_policy(capsys):
    plan = planned(capsys, "search.preset=flat", "search.segment_len=20")
    assert plan["forecast"]["speedup_bound"] == 1
    assert (plan["policies"], plan["dependence"]) == ([], "prefix")
    assert "weighted by forest.paths.weight is unbiased" in plan["weights"]


def test_preset_is_named_with_its_source_and_what_differs(capsys):
    words = ["search.preset=treepo", "search.segment_len=8", "search.fallback=all"]
    plan = planned(capsys, *words)
    name, source = core.SearchConfig.presets()[0]
    assert (plan["preset"]["name"], plan["preset"]["source"]) == (name, source)
    assert plan["preset"]["changed"] == ["segment_len=8", "fallback.from=all"]
    assert main(["plan", *words]) == 0
    assert f"preset treepo ({source}) with segment_len=8, fallback.from=all" in (
        capsys.readouterr().out
    )


def test_presets_are_listed_with_their_sources(capsys):
    assert main(["plan", "--presets"]) == 0
    lines = capsys.readouterr().out.splitlines()
    listed = [tuple(re.split(r"  +", line, maxsplit=1)) for line in lines]
    assert listed == core.SearchConfig.presets()
    assert main(["plan", "--presets", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == dict(core.SearchConfig.presets())


def test_first_word_may_be_a_config_file(capsys, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("search: {width: 5, fallback: none}\n")
    plan = planned(capsys, file, "search.max_depth=3")
    assert plan["search"]["width"] == 5
    assert plan["search"]["max_depth"] == 3
    assert plan["search"]["fallback"]["from"] == "nothing"


def test_small_pool_recomputes_and_stays_within_its_blocks(capsys):
    words = ["--rates", "0.05", "--trees", "8", "engine.num_blocks=24"]
    plan = planned(capsys, *words)["forecast"]
    assert plan["peak_blocks"] < 24
    assert plan["recomputed_tokens"] > 0


def test_memory_is_that_of_the_engines_pool(capsys, tiny_model_dir):
    from treepo.engine import Engine

    for folder in (tiny_model_dir, embedded.MODEL_PATH):
        engine = Engine.from_pretrained(folder)
        shape = model_shape(folder)
        assert shape.bytes_per_token(Dtype.FLOAT32) == engine.shapes.bytes_per_token
        assert shape.max_model_len == engine.max_model_len
    for key in ("dtype", "rollout_dtype", "kv_dtype"):
        plan = planned(capsys, "--model", tiny_model_dir, f"engine.{key}=bfloat16")
        slots = plan["forecast"]["peak_blocks"] * 16
        numbers = slots * model_shape(tiny_model_dir).numbers_per_token
        assert plan["peak_kv_gib"] == numbers * 2 / 2**30


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[1]",
        "{}",
        '{"num_attention_heads": 0, "hidden_size": 8}',
        '{"kv_lora_rank": 4}',
        '{"text_config": null}',
        '{"text_config": [1]}',
    ],
)
def test_model_without_known_shapes_has_no_gib(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    assert model_shape(tmp_path) is None
    assert model_shape(tmp_path / "absent") is None


@pytest.mark.parametrize("around", [{}, {"text_config": None}])
def test_shapes_are_read_by_the_names_of_gpt2_too(tmp_path, around):
    sizes = {"n_head": 3, "n_layer": 2, "n_embd": 12, "n_positions": 64, **around}
    (tmp_path / "config.json").write_text(json.dumps(sizes))
    assert model_shape(tmp_path) == ModelShape(numbers_per_token=2 * 2 * 12, max_model_len=64)


def test_hub_name_is_planned_without_memory(capsys):
    assert main(["plan", "--model", "someone/model", "--trees", "2"]) == 0
    assert "name a local --model for its GiB" in capsys.readouterr().out


def test_help_says_what_rates_are(capsys):
    with pytest.raises(SystemExit):
        main(["plan", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "probabilities that a segment ends its path" in text
    assert "the last one repeats" in text
