"""The command lines of treepo, its peers and the roof, each in its best mode."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import gettempdir

from contestants import Program
from environment import REPO, SMOLLM2

WAIT_POLICIES: dict[str, str | None] = {"passive": "PASSIVE", "default": None}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is the same for every contestant of a comparison.

    Attributes:
        options: With those of `add_options`.
        dtype: float32 or bfloat16, of weights and KV cache.
        omp: Of `WAIT_POLICIES`.
        max_num_seqs: Sequences at once.
    """

    options: argparse.Namespace
    dtype: str
    omp: str
    max_num_seqs: int

    @property
    def model(self) -> list[str]:
        """Arguments: which weights in which format."""
        return ["--model", str(Path(self.options.model).resolve()), "--dtype", self.dtype]

    @property
    def threads(self) -> list[str]:
        """Arguments: threads of each process."""
        return ["--threads", str(self.options.threads)]

    @property
    def rows(self) -> list[str]:
        """Arguments: sequences at once."""
        return ["--max-num-seqs", str(self.max_num_seqs)]

    @property
    def memory(self) -> list[str]:
        """Arguments: size of the KV cache."""
        return ["--kv-cache-gib", str(self.options.kv_gib)]

    @property
    def variables(self) -> dict[str, str | None]:
        """Environment variables of every process."""
        return {
            "OMP_WAIT_POLICY": WAIT_POLICIES[self.omp],
            "OMP_NUM_THREADS": str(self.options.threads),
        }

    def own(self, name: str, module: str, *arguments: str) -> Program:
        """A program that runs in this environment."""
        return Program(
            name=name,
            python=sys.executable,
            module=module,
            arguments=[*self.model, *self.threads, *arguments],
            variables=self.variables,
        )


def build(names: Sequence[str], setting: Setting) -> list[Program]:
    """The programs of `names` in that order, without those whose Python is not given."""
    return [program for name in names if (program := PROGRAMS[name](setting)) is not None]


def roof(setting: Setting) -> Program:
    return setting.own("roof", "roof", "--serve")


def treepo(setting: Setting) -> Program:
    return setting.own("treepo", "peers.treepo_server", *setting.rows, *setting.memory)


def transformers(setting: Setting) -> Program:
    return setting.own("transformers", "peers.transformers_server", "--mode", "generate")


def continuous(setting: Setting) -> Program:
    return setting.own("continuous", "peers.transformers_server", "--mode", "continuous")


def vllm(setting: Setting) -> Program | None:
    """One process."""
    return _vllm(setting, "vllm", splits="0")


def vllm_split(setting: Setting) -> Program | None:
    """Its engine in a process of its own, vLLM's default."""
    return _vllm(setting, "vllm_split", splits="1")


def _vllm(setting: Setting, name: str, *, splits: str) -> Program | None:
    # The variables decide vLLM's speed on few cores.
    python = _given(setting.options.peer_python, name, "--peer-python")
    if python is None:
        return None
    libiomp = Path(python).parent.parent / "lib" / "libiomp5.so"
    variables = {
        **setting.variables,
        "LD_PRELOAD": str(libiomp) if libiomp.exists() else None,
        "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
        "VLLM_CPU_KVCACHE_SPACE": str(setting.options.kv_gib),
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_ENABLE_V1_MULTIPROCESSING": splits,
    }
    return Program(
        name=name,
        python=python,
        module="peers.vllm_server",
        arguments=[*setting.model, *setting.rows],
        variables=variables,
    )


def llama_cpp(setting: Setting) -> Program | None:
    python = _given(setting.options.llama_python, "llama.cpp", "--llama-python")
    if python is None:
        return None
    file = gguf(setting.model[1], setting.dtype)
    return Program(
        name="llama.cpp",
        python=python,
        module="peers.llama_server",
        arguments=["--gguf", file, *setting.threads, *setting.rows],
        variables=setting.variables,
    )


def gguf(model: str, dtype: str) -> str:
    """The model's GGUF file in the temporary folder; made if it is not there."""
    file = Path(gettempdir()) / f"{Path(model).name}.{dtype}.gguf"
    if not file.exists():
        program = REPO / "benches" / "peers" / "make_gguf.py"
        command = [sys.executable, str(program), "--model", model, "--dtype", dtype]
        subprocess.run([*command, "--output", str(file)], check=True, stdout=subprocess.DEVNULL)
    return str(file)


PROGRAMS: dict[str, Callable[[Setting], Program | None]] = {
    "roof": roof,
    "treepo": treepo,
    "vllm": vllm,
    "vllm_split": vllm_split,
    "llama.cpp": llama_cpp,
    "transformers": transformers,
    "continuous": continuous,
}


def add_options(parser: argparse.ArgumentParser, *, kv_gib: int) -> None:
    """Add the options that say what runs and where; `kv_gib` is the default of --kv-gib."""
    parser.add_argument("--model", default=SMOLLM2, help="Hugging Face folder")
    parser.add_argument("--peer-python", help="Python of an environment with vllm-cpu")
    parser.add_argument("--llama-python", help="Python of an environment with llama-cpp-python")
    parser.add_argument("--dtypes", nargs="+", default=["float32"])
    parser.add_argument("--omp", nargs="+", choices=sorted(WAIT_POLICIES), default=["passive"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--kv-gib", type=int, default=kv_gib, help="of treepo and of vLLM each")
    parser.add_argument("--repeats", type=int, default=5)


def _given(python: str | None, name: str, option: str) -> str | None:
    if python is None:
        print(f"{name} is left out: {option} is not given")
        return None
    # Not resolved: a virtual environment's interpreter is a link to the system's.
    return str(Path(python).absolute())
