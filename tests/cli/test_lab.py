import json

import pytest

from treepo.cli.main import main


def test_lab_prints_traps_and_presets_and_saves_what_it_found(capsys, tmp_path):
    words = ["--batches", "40", "--searches", "flat,even", "--presets", "grpo,tree_rloo"]
    assert main(["lab", *words, "--output-dir", str(tmp_path / "lab")]) == 0
    out = capsys.readouterr().out
    assert out.count("fresh sibling") == 6
    assert out.count("tree_rloo") == 2
    saved = json.loads((tmp_path / "lab/lab.json").read_text())
    assert [(row["search"], row["preset"], row["is_weighted"]) for row in saved["rows"]] == [
        (search, preset, is_weighted)
        for search in ("flat", "even")
        for preset, is_weighted in (("grpo", False), ("grpo", True), ("tree_rloo", True))
    ]


def test_lab_refuses_a_folder_that_is_a_file_before_it_measures(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("treepo.cli.lab.spring", lambda *_: pytest.fail("measured"))
    file = tmp_path / "lab"
    file.write_text("mine")
    assert main(["lab", "--batches", "40", "--output-dir", str(file)]) == 2
    assert f"cannot write {file}: File exists" in capsys.readouterr().err
    assert file.read_text() == "mine"


def test_lab_names_what_it_does_not_know(capsys):
    for words, message in (
        (["--searches", "evn"], "unknown search 'evn', known: flat, even"),
        (["--presets", "tree_rlo"], "did you mean tree_rloo"),
        (["--batches", "3"], "--batches must be at least 40, got 3"),
        (["--seed", "-1"], "--seed must be at least 0"),
        (["search.width=3"], "unknown option 'search.width=3'"),
    ):
        assert main(["lab", *words]) == 2
        assert message in capsys.readouterr().err
