"""Entry point of the command `treepo`; each command is imported when it is used."""

import argparse
import importlib
import io
import os
import signal
import sys
from collections.abc import Sequence

from treepo import core
from treepo.cli import EXIT_BROKEN_PIPE, EXIT_INTERRUPTED, EXIT_OK, EXIT_USER_ERROR
from treepo.errors import TreepoError

_COMMANDS = {
    "train": "train a model on trees of its own answers",
    "rollout": "sample one tree a prompt, show the first and save all",
    "plan": "say what a search will decode and share, before anything runs",
    "eval": "measure accuracy, greedy accuracy and pass@k on prompts",
    "lab": "measure bias and cost of advantage presets where the exact gradient is known",
    "doctor": "say what this machine computes with, and whether sampling and training agree",
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]
        raise _UsageError(f"{message}; see {self.prog} --help")


class _UsageError(TreepoError):
    pass


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: Words after `treepo`; those of the process if absent.

    Returns:
        Exit code: 0, 1 if `doctor` found a fault, 2 for a mistake of the user (one line on
        stderr), 130 after Ctrl-C.
    """
    try:
        return _run(list(sys.argv[1:] if argv is None else argv))
    except TreepoError as error:
        return _fail(str(error))
    except BrokenPipeError:
        # Whoever read our output has seen enough; what Python flushes at its end goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
    except OSError as error:
        # Disks fill up and folders vanish at any moment.
        where = "" if error.filename is None else f"{error.filename}: "
        return _fail(f"{where}{error.strerror or error}")
    except RuntimeError as error:
        # torch's error on a GPU has a class of its own, on a CPU it has not.
        if "allocate memory" not in str(error) and "OutOfMemory" not in type(error).__name__:
            raise
        return _fail(
            "out of memory; lower engine.kv_cache_gib, engine.num_blocks, "
            f"engine.max_num_batched_tokens or max_tokens_per_microbatch ({error})"
        )
    except KeyboardInterrupt:
        if argv is None:
            # One more Ctrl-C would break into what Python does at its end.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        print("treepo: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED


def _fail(message: str) -> int:
    print(f"treepo: error: {' '.join(message.split())}", file=sys.stderr)
    return EXIT_USER_ERROR


def _run(argv: list[str]) -> int:
    _prepare_environment()
    parser = _Parser(prog="treepo", description="Sample and train language models on trees.")
    parser.add_argument("--version", action="version", version=f"treepo {core.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="command", parser_class=_Parser)
    for name, summary in _COMMANDS.items():
        commands.add_parser(name, help=summary, add_help=False)
    known, rest = parser.parse_known_args(argv[:1])
    if known.command is None:
        if rest:
            parser.error(f"unknown option '{rest[0]}'")
        parser.print_help()
        return EXIT_OK
    module = importlib.import_module(f"treepo.cli.{known.command}")
    command = _Parser(
        prog=f"treepo {known.command}",
        description=_COMMANDS[known.command],
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    module.add_arguments(command)
    arguments, overrides = command.parse_known_args(argv[1:])
    return int(module.run(arguments, overrides))


def _prepare_environment() -> None:
    # Idle OpenMP threads that spin take the cores from everybody else; torch reads this once.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Models write in any script; a terminal that lacks a character shows its number.
        sys.stdout.reconfigure(errors="backslashreplace")


if __name__ == "__main__":
    sys.exit(main())
