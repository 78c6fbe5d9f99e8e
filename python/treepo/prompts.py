"""Prompts in: chat template, special tokens, stop tokens, and files of prompts."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from treepo.errors import DataError, InvalidInputError

Message: TypeAlias = Mapping[str, Any]
Prompt: TypeAlias = str | Sequence[Message] | Sequence[int] | npt.NDArray[Any]

_MAX_NAMED_LINES = 5


def encode(tokenizer: Any, prompt: Prompt) -> npt.NDArray[np.uint32]:
    """Turn a prompt into token ids.

    A text is tokenized as the tokenizer does it, with its own start token. Messages go through
    the chat template once; the template writes the start token itself, so none is added.
    Token ids pass through.

    Args:
        tokenizer: A Hugging Face tokenizer.
        prompt: A text, a list of `{"role": .., "content": ..}`, or token ids. When the last
            message is the assistant's, the completion continues it.

    Returns:
        Token ids, uint32, at least one.

    Raises:
        InvalidInputError: Nothing to encode, a text that the tokenizer has no tokens for, a token
            id below 0, or messages for a tokenizer without chat template.
    """
    if isinstance(prompt, str):
        ids = _tokenize(tokenizer, prompt, adds_start=True)
    elif is_messages(prompt):
        ids = _tokenize(tokenizer, render(tokenizer, prompt), adds_start=False)
    else:
        ids = prompt
    array = np.asarray(ids)
    if array.ndim != 1 or array.size == 0:
        raise InvalidInputError(f"prompt is empty or not a flat list: {prompt!r:.60}; give text")
    is_integer = np.issubdtype(array.dtype, np.integer)
    if not is_integer or array.min() < 0 or array.max() > np.iinfo(np.uint32).max:
        raise InvalidInputError(f"prompt holds something that is no token id: {prompt!r:.60}")
    array = array.astype(np.uint32)
    return array if _passes_through(prompt) else _single_bos(tokenizer, array)


def _tokenize(tokenizer: Any, text: str, *, adds_start: bool) -> Any:
    if tokenizer is None:
        raise InvalidInputError(
            f"the prompt {text!r:.60} is text and there is no tokenizer; give token ids"
        )
    try:
        return tokenizer(text, add_special_tokens=adds_start)["input_ids"]
    except Exception as error:
        # The tokenizers package raises plain exceptions, e.g. where there is no unknown token.
        raise InvalidInputError(
            f"the tokenizer cannot encode the prompt {text!r:.60}: {error}"
        ) from None


def render(tokenizer: Any, messages: Any) -> str:
    """Return messages as the text that the model's chat template makes of them.

    Raises:
        InvalidInputError: The tokenizer has no chat template, or it refuses the messages.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise InvalidInputError(
            "the prompt is a list of messages but the tokenizer has no chat template; "
            "give the prompt as text"
        )
    continues = messages[-1].get("role") == "assistant"
    try:
        text = tokenizer.apply_chat_template(
            list(messages),
            tokenize=False,
            add_generation_prompt=not continues,
            continue_final_message=continues,
        )
    except Exception as error:
        # Templates raise whatever jinja2 or the template itself decides to.
        reason = " ".join(str(error).split())
        raise InvalidInputError(f"the chat template refuses the messages: {reason}") from None
    return str(text)


def is_messages(prompt: Any) -> bool:
    """Whether a prompt is a list of messages."""
    is_list = isinstance(prompt, Sequence) and not isinstance(prompt, str)
    return is_list and len(prompt) > 0 and isinstance(prompt[0], Mapping)


def eos_token_ids(source: Any, tokenizer: Any = None) -> tuple[int, ...]:
    """Return every token that ends a completion: the model's stop list and the tokenizer's.

    Args:
        source: A model, or a generation config; its `eos_token_id` is absent, a number or a list.
        tokenizer: A Hugging Face tokenizer, or None.

    Returns:
        Token ids in ascending order, each once; empty when nothing ends a completion.
    """
    generation = getattr(source, "generation_config", None)
    holders = (source if generation is None else generation, tokenizer)
    found: set[int] = set()
    for holder in holders:
        value = getattr(holder, "eos_token_id", None)
        if value is None:
            continue
        found.update([int(value)] if np.ndim(value) == 0 else (int(item) for item in value))
    return tuple(sorted(found))


def load_jsonl(file: str | Path) -> list[dict[str, Any]]:
    """Read a JSON-lines file of prompts; blank lines are skipped.

    Args:
        file: Path of a UTF-8 file with one JSON object a line. Each has a `prompt`: a text, or
            a list of messages; other keys are columns for the reward functions.

    Returns:
        One dictionary a line, in order. A column that some lines lack is None there.

    Raises:
        DataError: Missing, empty or unreadable file, or bad lines; each is named, up to five.
    """
    path = Path(file)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: byte {error.start}; convert it") from None
    rows: list[dict[str, Any]] = []
    bad: list[str] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                rows.append(_parse_line(line))
            except ValueError as error:
                bad.append(f"line {number}: {error}")
    if bad:
        more = f"; and {len(bad) - _MAX_NAMED_LINES} more" if len(bad) > _MAX_NAMED_LINES else ""
        raise DataError(f"{path}: {'; '.join(bad[:_MAX_NAMED_LINES])}{more}")
    if not rows:
        raise DataError(f"{path} is empty; write one JSON object with a 'prompt' on each line")
    columns = dict.fromkeys(key for row in rows for key in row)
    return [{key: row.get(key) for key in columns} for row in rows]


def _parse_line(line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"not valid JSON ({error.msg}, column {error.colno})") from None
    if not isinstance(row, dict):
        raise ValueError(f"expected an object, got {line.strip()!r:.40}")
    if "prompt" not in row:
        raise ValueError(f"no 'prompt'; it has {', '.join(row) or 'nothing'}")
    problem = _prompt_problem(row["prompt"])
    if problem:
        raise ValueError(problem)
    return row


def _prompt_problem(prompt: Any) -> str | None:
    if isinstance(prompt, str):
        return None if prompt else "'prompt' is an empty text"
    if not isinstance(prompt, list):
        return f"'prompt' must be a text or a list of messages, got {prompt!r:.40}"
    if not prompt:
        return "'prompt' is an empty list of messages"
    for message in prompt:
        usable = isinstance(message, dict) and isinstance(message.get("role"), str)
        if not usable or not isinstance(message.get("content"), str | list):
            return f"'prompt' holds a message without role and content: {message!r:.40}"
    return None


def _passes_through(prompt: Prompt) -> bool:
    return not isinstance(prompt, str) and not is_messages(prompt)


def _single_bos(tokenizer: Any, ids: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
    # A text that already begins with the start token would get a second one.
    bos = getattr(tokenizer, "bos_token_id", None)
    doubled = bos is not None and len(ids) > 1 and ids[0] == bos and ids[1] == bos
    return ids[1:] if doubled else ids
