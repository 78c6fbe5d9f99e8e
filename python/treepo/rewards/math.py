r"""Rewards for answers that are numbers: the last one of a text, or the one in `\boxed{..}`.

Numbers are compared by value, exactly: 7 equals 7.0, 1,000 equals 1000, 3/4 equals 0.75. Dollar and
percent signs are units that do not change a value: 50% equals 50.
"""

import re
from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction

from treepo.rewards.base import Completion, answer_text, completion_text

# a sign right behind a digit, a letter or a bracket is an operator, one before a space is that or a
# dash; exponents are short because
# the value is expanded
_NUMBER = re.compile(
    r"(?P<sign>(?<![\w)\]}])-(?!\s))?\s?\$?(?P<inner>(?<=\$)-)?"
    r"(?P<digits>(?<![\d.])(?<!\d,)\d{1,3}(?:,\d{3})+(?![\d,])|\d+|(?<!\d)(?=\.\d))"
    r"(?P<rest>(?:\.\d+)?(?:[eE][-+]?\d{1,3}(?!\d))?)"
)
_FRACTION = re.compile(r"(-?)\\frac\{([^{}]+)\}\{([^{}]+)\}|([^/]+)/([^/]+)")
_BRACE = re.compile(r"\\boxed\s*\{|\\.|[{}]", re.DOTALL)
# a space between two digits separates two numbers
_SPACING = re.compile(r"\\[,!;: ]|\\left(?![a-z])|\\right(?![a-z])|(?<!\d)\s+|\s+(?!\d)|~")
_TEXT = re.compile(r"\\(?:text|mathrm|textbf|mathbf)\{([^{}]*)\}")


def last_number(
    *,
    completions: Sequence[Completion],
    answer: Sequence[object],
    **columns: Sequence[object],  # noqa: ARG001 - reward functions are given every column
) -> list[float]:
    """Reward 1 if the last number of a completion equals the last number of the answer, else 0.

    Args:
        completions: Texts or message lists.
        answer: Numbers, or texts that end in one, such as `so she has 3. #### 3`.
        columns: Unused.

    Returns:
        A reward for each completion; 0 for one without a number.

    Raises:
        ValueError: An answer is missing or holds no number.
    """
    return [
        float(find_last_number(completion_text(completion)) == _number_of_answer(right))
        for completion, right in zip(completions, answer, strict=True)
    ]


def boxed(
    *,
    completions: Sequence[Completion],
    answer: Sequence[object],
    **columns: Sequence[object],  # noqa: ARG001
) -> list[float]:
    r"""Reward 1 if the last complete `\boxed{..}` of a completion holds the answer, else 0.

    Contents that are numbers or fractions are compared by value, others as text without spacing
    commands. This is no algebra: `x+1` does not equal `1+x`.

    Args:
        completions: Texts or message lists.
        answer: The content of the box, or a text with a `\boxed{..}` of its own.
        columns: Unused.

    Returns:
        A reward for each completion; 0 for one without a complete box.

    Raises:
        ValueError: An answer is missing.
    """
    return [
        float(_box_holds(completion_text(completion), answer_text(right)))
        for completion, right in zip(completions, answer, strict=True)
    ]


def find_last_number(text: str) -> Fraction | None:
    """Value of the last number in a text.

    Args:
        text: Any text.

    Returns:
        The value, or None if there is no number.
    """
    last = None
    for last in _NUMBER.finditer(text.replace("\u2212", "-")):  # noqa: B007 - the last one counts
        pass
    return None if last is None else _value(last)


def find_last_boxed(text: str) -> str | None:
    r"""Content of the last complete `\boxed{..}`; braces nest, escaped braces do not count.

    Args:
        text: Any text, possibly cut off in a box.

    Returns:
        The content, or None if no box is complete.
    """
    opened: list[int | None] = []
    last_start, last_end = -1, -1
    for token in _BRACE.finditer(text):
        if token.group().startswith(r"\boxed"):
            opened.append(token.end())
        elif token.group() == "{":
            opened.append(None)
        elif token.group() == "}" and opened:
            start = opened.pop()
            if start is not None and start > last_start:
                last_start, last_end = start, token.start()
    return None if last_start < 0 else text[last_start:last_end]


def parse_number(text: str) -> Fraction | None:
    r"""Value of a text that is one number and nothing else.

    Args:
        text: Such as `-1,234.5`, `$7`, `50\%`, `3/4` or `\frac{3}{4}`.

    Returns:
        The value, or None if the text is not a number.
    """
    text = _plain(text).replace("\\$", "$").replace("\\%", "%").replace("{,}", ",")
    fraction = _FRACTION.fullmatch(text)
    if fraction is not None:
        sign, top, bottom = fraction.group(1), *(fraction.group(2, 3) or ())
        if top is None or bottom is None:
            sign, (top, bottom) = "", fraction.group(4, 5)
        numerator, denominator = _parse_plain(top), _parse_plain(bottom)
        if numerator is None or not denominator:
            return None
        return (-numerator if sign else numerator) / denominator
    return _parse_plain(text)


def _parse_plain(text: str) -> Fraction | None:
    match = _NUMBER.fullmatch(text.removeprefix("+").removesuffix("%").removesuffix("$"))
    return None if match is None else _value(match)


def _value(match: re.Match[str]) -> Fraction:
    digits = match["digits"].replace(",", "") or "0"
    value = Fraction(Decimal(digits + match["rest"]))
    return -value if match["sign"] or match["inner"] else value


def _number_of_answer(answer: object) -> Fraction:
    number = find_last_number(answer_text(answer))
    if number is None:
        raise ValueError(f"answer {answer!r} holds no number")
    return number


def _box_holds(completion: str, answer: str) -> bool:
    content = find_last_boxed(completion)
    if content is None:
        return False
    boxed_answer = find_last_boxed(answer)
    right = answer if boxed_answer is None else boxed_answer
    if _plain(content) == _plain(right):
        return True
    number = parse_number(content)
    return number is not None and number == parse_number(right)


def _plain(text: str) -> str:
    """Drop what only spaces or dresses a formula."""
    text = _TEXT.sub(r"\1", text.replace("\u2212", "-"))
    text = text.replace(r"\dfrac", r"\frac").replace(r"\tfrac", r"\frac")
    text = _SPACING.sub("", text)
    return text.removesuffix(".").removeprefix("$").removesuffix("$")
