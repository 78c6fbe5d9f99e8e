import re

import pytest

from treepo.cli.main import main
from treepo.engine import run as run_module
from treepo.engine.sampler import Draws

pytestmark = pytest.mark.usefixtures("single_thread")


def report(capsys):
    return dict(re.findall(r"^(\w[\w ]*?) {2,}(.*)$", capsys.readouterr().out, re.M))


def test_doctor_says_what_computes_and_that_sampling_and_training_agree(capsys, monkeypatch):
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    assert main(["doctor"]) == 0
    lines = report(capsys)
    assert "torch 2" in lines["versions"]
    assert re.search(r"level (avx512_bf16|avx512|avx2|neon|portable)$", lines["processor"])
    assert lines["wait policy"].startswith("PASSIVE")
    assert "decoder_layer" in lines["fused"]
    assert re.search(r"\d+ tokens differ by 0 at most: the same bits$", lines["training"])


def test_doctor_warns_of_spinning_threads(capsys, monkeypatch):
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    assert main(["doctor"]) == 0
    assert "-> unless nothing else" in capsys.readouterr().out


def test_doctor_finds_a_sampler_that_records_something_else(capsys, monkeypatch):
    draw = run_module.draw

    def shifted(*arguments):
        draws = draw(*arguments)
        return Draws(draws.token_ids, draws.logprobs - 0.5, draws.entropies)

    monkeypatch.setattr(run_module, "draw", shifted)
    assert main(["doctor"]) == 1
    assert "sampling and training disagree" in capsys.readouterr().out


def test_doctor_finds_no_fault_in_the_rounding_of_a_short_kv_cache(capsys):
    assert main(["doctor", "engine.kv_dtype=bfloat16"]) == 0
    difference = float(re.search(r"differ by (\S+) at most", report(capsys)["training"])[1])
    assert difference > 1e-3


def test_doctor_takes_other_back_ends(capsys):
    assert main(["doctor", "engine.packing=never", "engine.attention=torch"]) == 0
    assert report(capsys)["fused"].startswith("nothing; not packed_linear")
