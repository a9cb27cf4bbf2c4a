"""Where thinking ends: an automaton over tokens that finds the delimiter in the text without decoding it."""

import copy
import functools
from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor


class DelimiterAutomaton:
    r"""Knuth-Morris-Pratt over tokens: `table[state, token]` is the state after the token.

    State s < length means that the last s symbols of the completion begin the delimiter; `length` is final: the
    delimiter has appeared. A token may hold several symbols, so delimiters that are split over tokens or merged
    with neighbours ("\n####", "###" + "#") are found all the same.

    Args:
        pieces: for each token id, the symbols it adds to the completion: a string, or a sequence of one token id.
        delimiter: the symbols to find, at least one.

    """

    def __init__(self, pieces: Sequence[Sequence[Hashable]], delimiter: Sequence[Hashable]) -> None:
        if not len(delimiter):
            raise ValueError("the delimiter is empty")
        self.length = len(delimiter)
        step = _transitions(delimiter)
        table = torch.zeros((self.length + 1, len(pieces)), dtype=torch.int16)  # most tokens start a match over
        table[self.length] = self.length
        symbols = set(delimiter)
        for token, piece in enumerate(pieces):
            if len(piece) and symbols.isdisjoint(piece):
                continue
            for state in range(self.length):
                after = state
                for symbol in piece:
                    after = step(after, symbol)
                table[state, token] = after
        self.table = table

    def to(self, device: torch.device) -> "DelimiterAutomaton":
        """Return it on a device."""
        return self.with_table(self.table.to(device))

    def with_table(self, table: Tensor) -> "DelimiterAutomaton":
        """Return the same with its table somewhere else."""
        other = copy.copy(self)
        other.table = table
        return other

    def start(self, rows: int) -> Tensor:
        """Return the state before the first token: (rows,)."""
        return torch.zeros(rows, dtype=torch.long, device=self.table.device)

    def advance(self, state: Tensor, tokens: Tensor) -> Tensor:
        """Return the state after one more token a row: (rows,), (rows,) -> (rows,)."""
        return self.table[state, tokens].long()

    def thinking(self, state: Tensor) -> Tensor:
        """Whether the delimiter has not appeared yet: (rows,) bools."""
        return state < self.length


def _transitions(delimiter: Sequence[Hashable]) -> Any:
    length = len(delimiter)

    @functools.cache
    def step(state: int, symbol: Hashable) -> int:
        if state == length:
            return length
        seen = [*delimiter[:state], symbol]
        return next(
            size for size in range(state + 1, -1, -1) if size == 0 or seen[len(seen) - size :] == list(delimiter[:size])
        )

    return step


def delimiter_automaton(delimiter: str | Sequence[int], tokenizer: Any, vocab_size: int) -> DelimiterAutomaton:
    """Return the automaton of a delimiter, made once for each tokenizer.

    Args:
        delimiter: a string, found in the decoded text (special tokens add nothing to it); or the token ids of one
            sequence, found as they are.
        tokenizer: needed for a string only.
        vocab_size: V, ids from the model's head; those that the tokenizer does not know add nothing.

    Raises:
        ValueError: a string without a tokenizer or not in ASCII, or an empty delimiter.

    """
    if not isinstance(delimiter, str):
        return _ids_automaton(tuple(delimiter), vocab_size)
    if not delimiter.isascii():
        raise ValueError(f"the delimiter {delimiter!r} is not ASCII, so its characters may be split over tokens")
    if tokenizer is None:
        raise ValueError("a delimiter given as text needs a tokenizer; give token ids instead")
    return _text_automaton(delimiter, tokenizer, vocab_size)


@functools.lru_cache(maxsize=4)
def _ids_automaton(delimiter: tuple[int, ...], vocab_size: int) -> DelimiterAutomaton:
    return DelimiterAutomaton([(token,) for token in range(vocab_size)], delimiter)


@functools.lru_cache(maxsize=4)
def _text_automaton(delimiter: str, tokenizer: Any, vocab_size: int) -> DelimiterAutomaton:
    return DelimiterAutomaton(pieces(tokenizer, vocab_size), delimiter)


def pieces(tokenizer: Any, vocab_size: int, *, skip_special_tokens: bool = True) -> list[str]:
    """Text that each token adds to a completion, a leading space included (decoding a token alone may drop it)."""
    anchor = tokenizer.encode("0", add_special_tokens=False)[-1]
    before = tokenizer.decode([anchor])
    known = range(min(max(tokenizer.get_vocab().values()) + 1, vocab_size))  # a vocabulary may have holes
    texts = tokenizer.decode([[anchor, token] for token in known], skip_special_tokens=skip_special_tokens)
    return [text.removeprefix(before) for text in texts] + [""] * (vocab_size - len(texts))
