"""Tokens as they are shown: text, or bytes where a token holds a part of a character only."""

import re
from collections.abc import Sequence
from typing import Any

from hrpo.delimiter import pieces

Piece = str | list[int]  # text, or bytes that are no text by themselves
FALLBACK = re.compile(r"<0x([0-9A-F]{2})>")  # how SentencePiece names a byte
# How byte-level vocabularies name bytes: those that print by themselves, the others from U+0100 on (GPT-2).
PRINTED = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
BYTES = {chr(byte): byte for byte in PRINTED}
BYTES |= {chr(0x100 + place): byte for place, byte in enumerate(sorted(set(range(0x100)) - set(PRINTED)))}


def token_pieces(tokenizer: Any, vocab_size: int) -> list[Piece]:
    """Return what each token id adds to a text, special tokens by their names; "" where the tokenizer knows none."""
    texts = pieces(tokenizer, vocab_size, skip_special_tokens=False)
    return [
        _whole(_bytes(tokenizer.convert_ids_to_tokens(token)), text) if "\N{REPLACEMENT CHARACTER}" in text else text
        for token, text in enumerate(texts)
    ]


def groups(ids: Sequence[int], known: Sequence[Piece]) -> list[tuple[int, int, str]]:
    """Return which tokens are text only together: place of the first, how many, their text."""
    found, at = list[tuple[int, int, str]](), 0
    while at < len(ids):
        raw, size, text = b"", 0, None
        while text is None and at + size < len(ids) and isinstance(piece := known[ids[at + size]], list):
            raw, size = raw + bytes(piece), size + 1
            text = _decoded(raw)
        if text is not None:
            found.append((at, size, text))
        at += size if text is not None else 1
    return found


def _bytes(symbol: str) -> bytes | None:
    """Return the bytes that a vocabulary's symbol stands for; None where it stands for text."""
    if match := FALLBACK.fullmatch(symbol):
        return bytes.fromhex(match[1])
    if all(character in BYTES for character in symbol):
        return bytes(BYTES[character] for character in symbol)
    return None


def _whole(raw: bytes | None, text: str) -> Piece:
    if raw is None:
        return text
    decoded = _decoded(raw)
    return list(raw) if decoded is None else decoded


def _decoded(raw: bytes) -> str | None:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return None
