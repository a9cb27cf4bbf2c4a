"""What a model folder holds, and whether its config asks for more: what is missing is made up in memory first."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM

INDEX = "model.safetensors.index.json"
HEADS = ("num_attention_heads", "num_key_value_heads")
SIZES = ("vocab_size", "hidden_size", "intermediate_size", "head_dim", *HEADS)
PACKED = 16  # weights that a stored value may stand for: 4 bits each, in whole numbers of 64
SPARE = 10**7  # values beside the weights: masks, tables of positions


def check_sizes(folder: Path, config: Any, trust_remote_code: bool) -> None:
    """Refuse a config that asks for far more than its files hold.

    Args:
        folder: of the model.
        config: transformers' config of it.
        trust_remote_code: run code that comes with the model.

    Raises:
        ValueError: names the field, or the tensor; or the index names a file elsewhere.

    """
    count, largest, held = 0, 1, 0
    for file in weight_files(folder, config):
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118
                shape = tensors.get_slice(name).get_shape()
                count, largest, held = count + 1, max(largest, *shape, 1), held + torch.Size(shape).numel()
    if not count:
        return  # which loading says
    asked = config.get_text_config().to_dict()
    for name, most in (("num_hidden_layers", count), *((name, largest) for name in SIZES)):
        size = asked.get(name)
        if isinstance(size, int) and size > most:  # some have a list, a size a layer
            raise ValueError(f"{name} is {size} in config.json, and no more than {most} in its tensors")
    with torch.device("meta"):
        lm: Any = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)  # type: ignore[no-untyped-call]
    sizes = {name: tensor.numel() for name, tensor in (*lm.named_parameters(), *lm.named_buffers())}
    if sum(sizes.values()) > PACKED * held + SPARE:
        name = max(sizes, key=lambda name: sizes[name])
        raise ValueError(f"config.json makes {name} of {sizes[name]:,} values, and all its tensors hold {held:,}")


def weight_files(folder: Path, config: Any) -> list[Path]:
    """Return the files of a folder that transformers reads weights from; none where there are none.

    Raises:
        ValueError: an index names a file that is not in the folder.

    """
    names = [getattr(config, "transformers_weights", None), "model.safetensors", INDEX]
    path = next((folder / name for name in names if name and (folder / name).is_file()), None)
    if path is None:
        return []
    if not path.name.endswith(".index.json"):
        return [path]
    files = sorted(set(json.loads(path.read_text())["weight_map"].values()))
    for file in files:
        if Path(file).name != file:
            raise ValueError(f"{path.name} names {file!r}, which is no file beside it")
    return [folder / file for file in files]
