"""Make the model that treepo trains by default, from nothing but a seed.

    python tools/make_embedded_model.py [--out FOLDER] [--seed 0]

A Llama of 1.3 million parameters learns to write long multiplications from the work of a pupil with
wrong beliefs (treepo.tasks.multiplication). Training stops after NUM_STEPS steps, a number fixed
before any run: no checkpoint is picked. Takes about three minutes on one core. At the end it writes
a Hugging Face folder with a README, and prints the share of held-out problems that it gets right.
"""

import argparse
import hashlib
import random
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from treepo.tasks.multiplication import (
    ALPHABET,
    SOLUTION_LEN,
    Pupil,
    draw_problem,
    heldout_examples,
    product_reward,
)

NUM_STEPS = 600
BATCH_SIZE = 32
LEARNING_RATE = 1e-3
NUM_WARMUP_STEPS = 50
DECAY_START = 0.6
FINAL_LEARNING_RATE_SHARE = 0.02
NUM_EVAL_PROBLEMS = 400
# apart from the streams that reinforcement learning draws from
PROBLEM_STREAM = 1_000_000
PAD_ID = len(ALPHABET)
EOS_ID = PAD_ID + 1
OUT = Path(__file__).parents[1] / "python/treepo/tasks/model"

README = """\
# The model that treepo trains by default

A LlamaForCausalLM with {num_parameters} parameters (fp32) and a tokenizer of one token a character,
for long multiplication by a sloppy pupil (`treepo.tasks.multiplication`).

* Made by `python tools/make_embedded_model.py --seed {seed}`: random initialisation, {num_steps}
  supervised steps (a number fixed beforehand) on {num_examples} solutions that a program wrote.
  No other data, no other model.
* Licence: Apache-2.0, as treepo.
* Start: {sampled:.1%} of {num_eval} held-out problems right at temperature 1, {greedy:.1%} greedy.

| file | sha256 |
|---|---|
{digests}
"""


def make_model() -> LlamaForCausalLM:
    """Build the model with random weights."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(ALPHABET) + 2,
            hidden_size=192,
            intermediate_size=512,
            num_hidden_layers=3,
            num_attention_heads=3,
            num_key_value_heads=3,
            max_position_embeddings=256,
            rms_norm_eps=1e-5,
            tie_word_embeddings=False,
            pad_token_id=PAD_ID,
            eos_token_id=EOS_ID,
            bos_token_id=None,
            initializer_range=0.05,
        )
    )


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Build the tokenizer: one token a character; an unknown character is an error."""
    vocab = {character: i for i, character in enumerate(ALPHABET)}
    vocab |= {"<pad>": PAD_ID, "<eos>": EOS_ID}
    tokenizer = Tokenizer(models.WordLevel(vocab))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(["<pad>", "<eos>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        model_max_length=256,
        clean_up_tokenization_spaces=False,
    )


def encode(text: str) -> list[int]:
    """Token ids of a text of the task."""
    return [ALPHABET.index(character) for character in text]


def batches(seed: int) -> Iterator[Tensor]:
    """Problems with the pupil's solutions, i64[BATCH_SIZE, tokens]; all rows are equally long."""
    pupil = Pupil(random.Random(seed))
    stream = PROBLEM_STREAM + seed
    for step in range(NUM_STEPS):
        rows = []
        for row in range(BATCH_SIZE):
            problem = draw_problem(stream, step * BATCH_SIZE + row, is_heldout=False)
            if problem.is_heldout:
                raise AssertionError(f"{problem.prompt} is held out")
            rows.append([*encode(problem.prompt + pupil.solve(problem)), EOS_ID])
        yield torch.tensor(rows)


def learning_rate_share(step: int) -> float:
    """Linear warm-up, constant, then linear decay."""
    warmup = min(1.0, (step + 1) / NUM_WARMUP_STEPS)
    progress = max(0.0, (step / NUM_STEPS - DECAY_START) / (1 - DECAY_START))
    return warmup * (1 - progress * (1 - FINAL_LEARNING_RATE_SHARE))


def train(model: LlamaForCausalLM, seed: int) -> None:
    """Fit the model to the pupil's solutions; the prompt carries no loss."""
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.01
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, learning_rate_share)
    start = time.perf_counter()
    for step, token_ids in enumerate(batches(seed), start=1):
        logits = model(input_ids=token_ids[:, :-1]).logits[:, -(SOLUTION_LEN + 1) :]
        targets = token_ids[:, -(SOLUTION_LEN + 1) :]
        loss = cross_entropy(logits.flatten(0, 1), targets.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % 50 == 0:
            seconds = time.perf_counter() - start
            print(f"step {step} loss {loss.item():.4f} {seconds:.0f} s", flush=True)


@torch.no_grad()
def accuracy(model: LlamaForCausalLM, *, temperature: float, seed: int) -> float:
    """Share of held-out problems that the model gets right.

    Args:
        model: The model.
        temperature: 0 for greedy.
        seed: Of the draws.

    Returns:
        0 to 1.
    """
    torch.manual_seed(seed)
    rows = heldout_examples(NUM_EVAL_PROBLEMS)
    prompts = [row["prompt"] for row in rows]
    output = model.generate(
        torch.tensor([encode(prompt) for prompt in prompts]),
        attention_mask=torch.ones(len(prompts), len(prompts[0]), dtype=torch.long),
        do_sample=temperature > 0,
        temperature=temperature or None,
        top_k=0 if temperature > 0 else None,
        top_p=1.0 if temperature > 0 else None,
        max_new_tokens=SOLUTION_LEN + 4,
    )
    ids = output[:, len(prompts[0]) :].tolist()
    # a completion that never ends holds no answer
    texts = [
        "".join(ALPHABET[i] for i in row[: row.index(EOS_ID)] if i < PAD_ID)
        if EOS_ID in row
        else ""
        for row in ids
    ]
    rewards = product_reward(prompts, texts, ids, answer=[row["answer"] for row in rows])
    return sum(rewards) / len(rewards)


def save(model: LlamaForCausalLM, out: Path, *, seed: int) -> None:
    """Write the folder: weights, configuration, tokenizer and README.

    Args:
        model: The trained model.
        out: The folder; made if it does not exist.
        seed: What the model was made from.
    """
    sampled = accuracy(model, temperature=1.0, seed=0)
    greedy = accuracy(model, temperature=0.0, seed=0)
    print(f"held-out accuracy: temperature 1 {sampled:.4f}, greedy {greedy:.4f}")
    model.generation_config.max_new_tokens = SOLUTION_LEN + 4
    model.generation_config.do_sample = True
    model.save_pretrained(out)
    make_tokenizer().save_pretrained(out)
    for path in out.iterdir():
        path.chmod(0o644)
    names = sorted(path.name for path in out.iterdir() if path.suffix != ".md")
    digests = {name: hashlib.sha256((out / name).read_bytes()).hexdigest() for name in names}
    readme = README.format(
        num_parameters=model.num_parameters(),
        seed=seed,
        num_steps=NUM_STEPS,
        num_examples=NUM_STEPS * BATCH_SIZE,
        num_eval=NUM_EVAL_PROBLEMS,
        sampled=sampled,
        greedy=greedy,
        digests="\n".join(f"| {name} | {digest} |" for name, digest in digests.items()),
    )
    (out / "README.md").write_text(readme)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(arguments.seed)
    model = make_model()
    train(model, arguments.seed)
    model.eval()
    save(model, arguments.out, seed=arguments.seed)


if __name__ == "__main__":
    main()
