"""A whole RL step, rollout and update, beside TRL's GRPOTrainer.

A step has one prompt and 8 completions of at most 32 tokens. Each side runs in processes of its
own, in turn (ABAB), with the same model, prompts, reward, number format, threads and wait policy.
The first step of a process is warm-up. Tree: width 8, segments of 8 tokens; flat: the same trainer
with 8 independent completions. TRL is asked for no gradient checkpointing, reference or logging.

    python benches/rl_step.py --model models/SmolLM2-135M-Instruct --trl-python TRL/bin/python
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import environment

HERE = Path(__file__).resolve().parent
NUM_COMPLETIONS = 8
MAX_TOKENS = 32


def main() -> None:
    options = parse()
    if options.contestant is not None:
        print(json.dumps(CONTESTANTS[options.contestant](options)), flush=True)
        return
    runs: dict[str, list[float]] = {name: [] for name in CONTESTANTS}
    versions = {}
    for _ in range(options.rounds):
        for name in CONTESTANTS:
            python = options.trl_python if name == "trl" else sys.executable
            found = run(name, python, options)
            versions[name] = found["version"]
            runs[name] += found["seconds"]
            print(name, " ".join(f"{x:.2f}" for x in found["seconds"]), flush=True)
    medians = {name: statistics.median(seconds) for name, seconds in runs.items()}
    result = {
        "options": vars(options),
        "versions": versions,
        "seconds": medians,
        "runs": runs,
        "trl_over_tree": medians["trl"] / medians["tree"],
        "trl_over_flat": medians["trl"] / medians["flat"],
    }
    print({key: result[key] for key in ("seconds", "trl_over_tree", "trl_over_flat")})
    name = f"rl_step_smollm2_{options.omp}_{environment.simd_level()}"
    print(environment.write(name, result))


def run(name: str, python: str, options: argparse.Namespace) -> dict[str, Any]:
    """One contestant in a process of its own; its last line is what it measured."""
    words = ["--contestant", name, "--model", options.model, "--steps", str(options.steps)]
    variables = {
        **os.environ,
        "OMP_NUM_THREADS": str(options.threads),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    variables.pop("OMP_WAIT_POLICY", None)
    if options.omp == "passive":
        variables["OMP_WAIT_POLICY"] = "PASSIVE"
    done = subprocess.run(
        [python, str(HERE / "rl_step.py"), *words, "--threads", str(options.threads)],
        env=variables,
        stdout=subprocess.PIPE,
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout.decode().strip().splitlines()[-1])
    return found


def reward(completions: Any, **columns: Any) -> list[float]:  # noqa: ARG001
    """Something that differs between completions and costs nothing."""
    return [len(completion[0]["content"]) % 7 / 7 for completion in completions]


def prompts(options: argparse.Namespace) -> list[dict[str, Any]]:
    sys.path.insert(0, str(HERE))
    import word_problems

    return [{"prompt": x} for x in word_problems.messages(options.steps + 1)]


def tree(options: argparse.Namespace) -> dict[str, Any]:
    return treepo_steps(options, {"width": NUM_COMPLETIONS, "segment_len": 8, "max_depth": 4})


def flat(options: argparse.Namespace) -> dict[str, Any]:
    sizes = {"width": NUM_COMPLETIONS, "segment_len": MAX_TOKENS, "max_depth": 1}
    return treepo_steps(options, {"preset": "flat", **sizes})


def treepo_steps(options: argparse.Namespace, search: dict[str, Any]) -> dict[str, Any]:
    """Steps of `treepo.Trainer`."""
    import torch

    import treepo
    from treepo.engine.load import load_model

    torch.set_num_threads(options.threads)
    model, tokenizer = load_model(options.model, treepo.EngineConfig())
    with tempfile.TemporaryDirectory() as folder:
        config = treepo.TrainConfig.for_model(options.model).replace(
            search=treepo.SearchConfig(**search),
            reward=treepo.config.RewardConfig(num_workers=0),
            advantage=treepo.config.AdvantageConfig(preset="grpo"),
            eval=treepo.config.EvalConfig(num_prompts=0),
            num_steps=options.steps + 1,
            prompts_per_step=1,
            minibatches_per_step=1,
            max_sampling_batches=1,
            save_every=0,
            output_dir=f"{folder}/run",
        )
        treepo.Trainer(model, tokenizer, reward, prompts(options), config=config).train()
        rows = (Path(folder) / "run/metrics.jsonl").read_text().splitlines()
    steps = [json.loads(row) for row in rows]
    assert all(row["tree/kept"] == 1 for row in steps), "a step without an update is no step"
    return {"version": treepo.__version__, "seconds": [row["step_time"] for row in steps[1:]]}


def trl(options: argparse.Namespace) -> dict[str, Any]:
    """Steps of TRL's GRPOTrainer."""
    import time

    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer
    from trl import __version__ as version

    torch.set_num_threads(options.threads)
    ends: list[float] = []

    class Clock(TrainerCallback):
        def on_train_begin(self, *arguments: Any, **values: Any) -> None:  # noqa: ARG002
            ends.append(time.perf_counter())

        def on_step_end(self, *arguments: Any, **values: Any) -> None:  # noqa: ARG002
            ends.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        config = GRPOConfig(
            output_dir=folder,
            per_device_train_batch_size=NUM_COMPLETIONS,
            num_generations=NUM_COMPLETIONS,
            max_completion_length=MAX_TOKENS,
            max_steps=options.steps + 1,
            learning_rate=1e-6,
            temperature=1.0,
            beta=0.0,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            save_strategy="no",
            report_to="none",
            logging_strategy="no",
            disable_tqdm=True,
        )
        trainer = GRPOTrainer(
            AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32),
            reward_funcs=reward,
            args=config,
            train_dataset=Dataset.from_list(prompts(options)),
            processing_class=AutoTokenizer.from_pretrained(options.model),
            callbacks=[Clock()],
        )
        trainer.train()
    seconds = [after - before for before, after in pairwise(ends)]
    return {"version": version, "seconds": seconds[1:]}


CONTESTANTS = {"tree": tree, "trl": trl, "flat": flat}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=environment.SMOLLM2)
    parser.add_argument("--trl-python", help="Python of an environment with TRL and torch")
    parser.add_argument("--steps", type=int, default=5, help="measured steps of a process")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--omp", choices=("passive", "default"), default="passive")
    parser.add_argument("--contestant", choices=CONTESTANTS, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
