"""Long multiplication, written out digit by digit: the task that treepo trains on by default.

A prompt is a problem such as ``37539*9=``: five digits times one digit. A solution works from the
right with carries, nine characters a step, and ends in a six-digit answer::

    9*9+0=81;3*9+8=35;5*9+3=48;7*9+4=67;3*9+6=33;#337851

Only the answer is rewarded, and it cannot be guessed, so a model has to get five steps right to
learn anything. `Pupil` writes solutions with a fixed set of wrong beliefs about the times tables;
a model warmed up on his work starts out wrong about the same facts, and reinforcement learning has
to find and repair each of them.

Problems are split by a checksum of their prompt: one problem belongs to one split for ever.
"""

import random
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import overload

from treepo.errors import DataError

Example = dict[str, str]
"""A row of the data set: `prompt` and `answer`."""

NUM_DIGITS = 5
STEP_LEN = 9
"""Characters of one written-out step, which makes a natural segment length."""
ANSWER_MARK = "#"
ALPHABET = "0123456789+-*=;#"
"""All characters of prompts and solutions, in the order of their token ids."""
SOLUTION_LEN = NUM_DIGITS * STEP_LEN + 1 + NUM_DIGITS + 1
"""Characters of a solution; a model adds one end token."""

_SPLIT_MODULUS = 8
_NUM_MULTIPLIERS = 8
_NUM_PROBLEMS = 10**NUM_DIGITS * _NUM_MULTIPLIERS

Fact = Callable[[int, int], int]
"""What somebody believes `digit * multiplier` to be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One multiplication.

    Attributes:
        multiplicand: 0 to 99999.
        multiplier: 2 to 9.
    """

    multiplicand: int
    multiplier: int

    @property
    def prompt(self) -> str:
        """The eight characters that a model continues, such as `00420*7=`."""
        return f"{self.multiplicand:0{NUM_DIGITS}d}*{self.multiplier}="

    @property
    def answer(self) -> str:
        """The product as six digits."""
        return f"{self.multiplicand * self.multiplier:0{NUM_DIGITS + 1}d}"

    @property
    def is_heldout(self) -> bool:
        """Whether the problem belongs to the held-out eighth, which is never trained on."""
        return zlib.crc32(self.prompt.encode()) % _SPLIT_MODULUS == 0

    @property
    def example(self) -> Example:
        """The problem as a row of a data set."""
        return {"prompt": self.prompt, "answer": self.answer}


def write_solution(problem: Problem, fact: Fact = int.__mul__) -> str:
    """Write out a solution.

    Args:
        problem: What to solve.
        fact: Gives `digit * multiplier`; at most 90, so that a step has two digits. The default
            is right. What it gets wrong goes on into the carry.

    Returns:
        `SOLUTION_LEN` characters: a step for each digit from the right, the mark, the answer.
    """
    steps: list[str] = []
    answer: list[str] = []
    carry = 0
    for digit in map(int, reversed(problem.prompt[:NUM_DIGITS])):
        value = fact(digit, problem.multiplier) + carry
        steps.append(f"{digit}*{problem.multiplier}+{carry}={value:02d};")
        carry, unit = divmod(value, 10)
        answer.append(str(unit))
    answer.append(str(carry))
    return "".join(steps) + ANSWER_MARK + "".join(reversed(answer))


class Pupil:
    """Someone who multiplies with wrong beliefs.

    A third of the 80 facts `digit * multiplier` are hard for him: he gets each of them wrong at a
    rate of its own, always by the same offset. The rate lies between 58 and 70 percent for two
    thirds of the hard facts and between 30 and 42 percent for the others, never near even: there
    the likelier answer, and with it greedy accuracy, would turn with any small change of a model.
    He slips on the other facts at 2 percent. His beliefs are always the same; his slips follow the
    generator.
    """

    _HARD_SHARE = 0.33
    _MOSTLY_WRONG_SHARE = 2 / 3
    _MOSTLY_WRONG = (0.58, 0.7)
    _OFTEN_WRONG = (0.3, 0.42)
    _SLIP_CHANCE = 0.02
    _MAX_FACT = 90

    def __init__(self, rng: random.Random) -> None:
        """Take the generator that decides when he slips."""
        self._rng = rng
        self._hard: dict[tuple[int, int], tuple[float, int]] = {}
        for digit in range(10):
            for multiplier in range(2, 2 + _NUM_MULTIPLIERS):
                beliefs = random.Random(1000 + 10 * digit + multiplier)
                if beliefs.random() < self._HARD_SHARE:
                    is_mostly_wrong = beliefs.random() < self._MOSTLY_WRONG_SHARE
                    chances = self._MOSTLY_WRONG if is_mostly_wrong else self._OFTEN_WRONG
                    chance = beliefs.uniform(*chances)
                    offset = beliefs.choice(self._offsets(digit, multiplier))
                    self._hard[digit, multiplier] = (chance, offset)

    @property
    def hard_facts(self) -> dict[tuple[int, int], float]:
        """How often he gets each hard fact wrong, by `(digit, multiplier)`."""
        return {fact: chance for fact, (chance, _) in self._hard.items()}

    def fact(self, digit: int, multiplier: int) -> int:
        """What he takes `digit * multiplier` for this time; 0 to 90."""
        slips = self._rng.random()
        chance, offset = self._hard.get((digit, multiplier), (self._SLIP_CHANCE, None))
        if slips >= chance:
            return digit * multiplier
        if offset is None:
            offset = self._rng.choice(self._offsets(digit, multiplier))
        return digit * multiplier + offset

    def solve(self, problem: Problem) -> str:
        """Write out his solution, see `write_solution`."""
        return write_solution(problem, self.fact)

    def _offsets(self, digit: int, multiplier: int) -> list[int]:
        """Offsets of his errors that leave a product between 0 and 90."""
        offsets = (10, -10, 1, -1, multiplier, -multiplier)
        return [o for o in offsets if 0 <= digit * multiplier + o <= self._MAX_FACT]


def draw_problem(seed: int, index: int, *, is_heldout: bool) -> Problem:
    """Draw a problem of one split, uniformly and with replacement.

    A function of its arguments only, the same on every machine and version of Python.

    Args:
        seed: Names a stream of draws.
        index: Position in that stream.
        is_heldout: Which split to draw from.

    Returns:
        A problem whose `is_heldout` is as asked for.
    """
    attempt = 0
    while True:
        key = f"{seed}/{index}/{attempt}".encode()
        number = int.from_bytes(blake2b(key, digest_size=8).digest(), "little") % _NUM_PROBLEMS
        multiplicand, multiplier = divmod(number, _NUM_MULTIPLIERS)
        problem = Problem(multiplicand=multiplicand, multiplier=multiplier + 2)
        if problem.is_heldout == is_heldout:
            return problem
        attempt += 1


class TrainExamples(Sequence[Example]):
    """A lazy sequence of training examples; row `i` depends on the seed and `i` only."""

    def __init__(self, seed: int, num_examples: int) -> None:
        """Name the stream of draws and how many rows it shows."""
        self._seed = seed
        self._num_examples = num_examples

    def __len__(self) -> int:
        """Number of rows."""
        return self._num_examples

    @overload
    def __getitem__(self, index: int) -> Example: ...

    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...

    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        """Row `index`, or a list of rows for a slice."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index} of a data set of {len(self)} rows")
        return draw_problem(self._seed, index % len(self), is_heldout=False).example

    def __iter__(self) -> Iterator[Example]:
        """All rows in order."""
        return (self[i] for i in range(len(self)))


def train_examples(seed: int = 0, num_examples: int = 1 << 20) -> TrainExamples:
    """Examples to train on; none of them is held out.

    Args:
        seed: Names the stream of draws.
        num_examples: Rows to show; they cost nothing until they are read.

    Returns:
        A sequence of rows with `prompt` and `answer`.
    """
    return TrainExamples(seed, num_examples)


def heldout_examples(num_examples: int, seed: int = 999) -> list[Example]:
    """Distinct examples that no training set contains.

    Args:
        num_examples: How many; there are about 100000.
        seed: Names the draw.

    Returns:
        Rows with `prompt` and `answer`.

    Raises:
        DataError: `num_examples` is above 50000.
    """
    if num_examples > 50_000:
        raise DataError(f"num_examples is {num_examples}, ask for at most 50000")
    rows: dict[str, Example] = {}
    index = 0
    while len(rows) < num_examples:
        problem = draw_problem(seed, index, is_heldout=True)
        rows.setdefault(problem.prompt, problem.example)
        index += 1
    return list(rows.values())


def product_reward(
    prompts: Sequence[str],  # noqa: ARG001 - part of the signature of reward functions
    completions: Sequence[str],
    completion_ids: Sequence[Sequence[int]],  # noqa: ARG001
    *,
    answer: Sequence[str],
    **columns: Sequence[object],  # noqa: ARG001
) -> list[float]:
    """Reward 1 for a completion that ends in the right product, else 0.

    The completion has exactly one mark `#`, and what follows it is the six-digit product and
    nothing else. Steps are not looked at.

    Args:
        prompts: Unused.
        completions: Texts without the end token.
        completion_ids: Unused.
        answer: The six-digit products.
        columns: Unused.

    Returns:
        A reward for each completion.
    """
    return [
        float(completion.partition(ANSWER_MARK)[2] == product)
        for completion, product in zip(completions, answer, strict=True)
    ]
