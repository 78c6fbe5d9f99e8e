"""The protocol of a contestant: a process that loads once and then answers one request a line.

A contestant's program calls `serve` with what it loaded. It writes a greeting when it is warm, then
reads a JSON `Request` from each line of stdin and writes a JSON reply to each line of stdout, until
stdin ends. It waits in a blocking read between requests, so it takes no CPU while others are
measured. What libraries print goes to stderr. Needs the standard library only: each contestant
runs in an environment of its own.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, TextIO


@dataclass(frozen=True, kw_only=True)
class Request:
    """Completions that a contestant samples in one timed call.

    Attributes:
        prompts: Token ids of each prompt.
        n: Completions of each prompt.
        max_tokens: Tokens of a completion at most.
        temperature: 0 takes the most likely token.
        stop_token_ids: Tokens that end a completion; with none, each has `max_tokens` tokens.
        seed: Decides the draws, as far as the contestant has a seed.
        segment_len: Tokens of a segment of the tree; None asks for independent completions.
        max_depth: Segments of a path of the tree.
        wants_tokens: Whether the reply carries the token ids.
    """

    prompts: list[list[int]]
    max_tokens: int
    n: int = 1
    temperature: float = 1.0
    stop_token_ids: list[int] = field(default_factory=list)
    seed: int = 0
    segment_len: int | None = None
    max_depth: int = 1
    wants_tokens: bool = False


@dataclass(kw_only=True)
class Reply:
    """What one call brought.

    Attributes:
        seconds: Wall clock from the prompts' token ids to all completions with log-probabilities.
        completions: Completions returned.
        tokens: Tokens of all completions; a shared token counts once for each.
        decoded: Tokens sampled.
        details: Further figures of this contestant.
        token_ids: Token ids of each completion if asked for, prompt by prompt.
    """

    seconds: float
    completions: int
    tokens: int
    decoded: int
    details: dict[str, Any] = field(default_factory=dict)
    token_ids: list[list[int]] | None = None


def flat_reply(seconds: float, completions: Iterable[Iterable[int]], request: Request) -> Reply:
    """The reply of a contestant whose completions share nothing."""
    token_ids = [list(completion) for completion in completions]
    tokens = sum(len(completion) for completion in token_ids)
    return Reply(
        seconds=seconds,
        completions=len(token_ids),
        tokens=tokens,
        decoded=tokens,
        token_ids=token_ids if request.wants_tokens else None,
    )


def own_stdout() -> TextIO:
    """Return stdout and lead whatever else writes to it, C libraries too, to stderr."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    return answers


def serve(run: Callable[[Request], Reply], packages: Iterable[str], answers: TextIO) -> None:
    """Answer requests until stdin ends.

    Args:
        run: Answers one request and times itself.
        packages: Distributions whose versions the greeting names.
        answers: What `own_stdout` returned before anything was imported that prints.
    """
    versions = {name: importlib.metadata.version(name) for name in packages}
    print(json.dumps({"versions": versions}), file=answers)
    for line in sys.stdin:
        reply = run(Request(**json.loads(line)))
        print(json.dumps(asdict(reply)), file=answers)
