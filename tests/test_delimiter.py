"""The delimiter automaton against plain text search."""

import random

import pytest
import torch
from models import byte_level, random_lm
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from hrpo import HybridCausalLM, HybridGate, generate, replay
from hrpo.delimiter import DelimiterAutomaton, delimiter_automaton
from hrpo.model import HybridSettings


def run(automaton: DelimiterAutomaton, sequences: list[list[int]]) -> list[list[int]]:
    """Return the state after each token of each sequence (all of one length)."""
    state, states = automaton.start(len(sequences)), []
    for tokens in torch.tensor(sequences).T:
        state = automaton.advance(state, tokens)
        states.append(state.tolist())
    return [list(row) for row in zip(*states, strict=True)]


def thinks(automaton: DelimiterAutomaton, tokens: list[int]) -> list[bool]:
    """Whether the model is still thinking after each token."""
    state, found = automaton.start(1), []
    for token in tokens:
        state = automaton.advance(state, torch.tensor([token]))
        found.append(automaton.thinking(state).item())
    return found


# ---- against brute force --------------------------------------------------------------------------------------

HASHES = ["#", "##", "###", "####", "#####", "\n####", "####\n", "#\n#", " ##", "## ", "#a#", "a#", "#a", "a", ""]
LETTERS = ["a", "b", "ab", "ba", "aba", "abab", "bab", "aa", "bb", "c", "", "cab", "bac"]
TAGS = ["<", "</", "/", "think", "th", "ink", ">", "</th", "ink>", ">\n", "<</", "k>", "i", "n", "k", "</think", ""]
CASES = [
    (HASHES, "####"),
    (HASHES, "##"),
    (HASHES, "#a#"),
    (LETTERS, "aba"),
    (LETTERS, "abab"),
    (LETTERS, "aabaa"),
    (TAGS, "</think>"),
]


@pytest.mark.parametrize(("pieces", "delimiter"), CASES, ids=[delimiter for _, delimiter in CASES])
def test_brute_force(pieces, delimiter):
    rng = random.Random(0)
    sequences = [rng.choices(range(len(pieces)), k=12) for _ in range(2000)]
    seen = set()
    for tokens, states in zip(sequences, run(DelimiterAutomaton(pieces, delimiter), sequences), strict=True):
        text = ""
        for token, state in zip(tokens, states, strict=True):
            text += pieces[token]
            begun = next(n for n in range(len(delimiter), -1, -1) if text.endswith(delimiter[:n]))
            assert state == (len(delimiter) if text.find(delimiter) >= 0 else begun), text
            seen.add(state)
    assert {0, 1, len(delimiter)} <= seen


@pytest.mark.parametrize("delimiter", [[4], [4, 4], [4, 4, 5], [4, 5, 4]])
def test_brute_force_on_token_ids(delimiter):
    rng = random.Random(1)
    sequences = [rng.choices([3, 4, 5], k=10) for _ in range(1000)]
    automaton = delimiter_automaton(delimiter, None, 7)
    for tokens, states in zip(sequences, run(automaton, sequences), strict=True):
        for t, state in enumerate(states):
            windows = [tokens[i : i + len(delimiter)] for i in range(t + 2 - len(delimiter))]
            assert (state == len(delimiter)) == (delimiter in windows), tokens[: t + 1]


def test_token_ids():
    assert thinks(delimiter_automaton([4], None, 6), [3, 4, 3, 4]) == [True, False, False, False]
    assert thinks(delimiter_automaton((4, 4, 5), None, 6), [4, 4, 4, 5, 0]) == [True, True, True, False, False]
    assert thinks(delimiter_automaton([4, 4, 5], None, 6), [4, 4, 0, 4, 5]) == [True] * 5
    assert thinks(delimiter_automaton([4], None, 60), [44, 54, 4]) == [True, True, False]  # ids, not digits


def test_rows_do_not_mix():
    automaton = DelimiterAutomaton(["#", "x"], "##")
    assert run(automaton, [[0, 1, 0], [0, 0, 1], [1, 0, 0]]) == [[1, 0, 1], [1, 2, 2], [0, 1, 2]]
    assert automaton.thinking(torch.tensor([0, 1, 2])).tolist() == [True, True, False]


# ---- real tokenizers ------------------------------------------------------------------------------------------


def metaspace() -> PreTrainedTokenizerFast:
    """SentencePiece's kind: decoding drops the space that the first token begins with."""
    merges = [("#", "#"), ("##", "#"), ("##", "##"), ("▁", "##"), ("▁", "####")]
    symbols = ["<unk>", "▁", "#", "a", "0", *map("".join, merges)]
    tokenizer = Tokenizer(models.BPE({symbol: i for i, symbol in enumerate(symbols)}, merges, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<eos>")


@pytest.mark.parametrize(("make", "space"), [(byte_level, "Ġ"), (metaspace, "▁")])
def test_tokenizer(make, space):
    tokenizer = make()
    automaton = delimiter_automaton("####", tokenizer, len(tokenizer))

    def thinking(*symbols):
        ids = tokenizer.convert_tokens_to_ids(list(symbols))
        assert tokenizer.convert_ids_to_tokens(ids) == list(symbols)
        return thinks(automaton, ids)

    assert thinking("a", "####") == [True, False]
    assert thinking("##", "##") == [True, False]
    assert thinking("###", "a", "#", "###", "a") == [True, True, True, False, False]
    assert tokenizer.decode(tokenizer.convert_tokens_to_ids(["##", f"{space}##"])) == "## ##"
    assert thinking("##", f"{space}##") == [True, True]  # decoded alone, "▁##" is "##"
    assert thinking(f"{space}##", f"{space}##", "##") == [True, True, False]
    assert thinking("##", "<eos>", "##") == [True, True, False]  # special tokens are no text
    assert thinking("<eos>", "###", "<eos>", "a") == [True] * 4


@pytest.mark.parametrize("make", [byte_level, metaspace])
def test_tokenizer_against_decoding(make):
    tokenizer, rng = make(), random.Random(2)
    automaton = delimiter_automaton("####", tokenizer, len(tokenizer))
    pool = [i for symbol, i in tokenizer.get_vocab().items() if "#" in symbol or symbol in ("a", "<eos>", "▁", "Ġ")]
    sequences = [rng.choices(pool, k=6) for _ in range(1000)]
    for tokens, states in zip(sequences, run(automaton, sequences), strict=True):
        found = ["####" in tokenizer.decode(tokens[: t + 1], skip_special_tokens=True) for t in range(6)]
        assert [state == 4 for state in states] == found


def test_merged_with_a_line_break():
    tokenizer = byte_level()
    ids = tokenizer.encode("a\n####7")
    assert tokenizer.convert_ids_to_tokens(ids) == ["a", "Ċ####", "7"]
    assert thinks(delimiter_automaton("####", tokenizer, len(tokenizer)), ids) == [True, False, False]


# Tokens of several completions, and at which of them the text has "####" in it.
SPELLINGS = [
    (["a", "Ċ####", "Ġ", "7", "a"], 1),  # merged with what comes before
    (["a", "####Ċ", "7", "a", "a"], 1),  # and after
    (["a", "###", "#", "7", "a"], 2),
    (["##", "Ċ", "##", "##", "a"], 3),
    (["#", "##", "Ġ##", "#", "#"], 4),
    (["##", "Ġ##", "#", "a", "###"], None),
    (["Ċ####", "####Ċ", "###", "#", "a"], 0),
]


@pytest.fixture
def model():
    tokenizer = byte_level()
    torch.manual_seed(0)
    lm = random_lm("llama", vocab_size=len(tokenizer))
    return HybridCausalLM(lm, HybridGate(24, 0.6, 0.9), HybridSettings("memory"), tokenizer)


@torch.no_grad()
def test_thinking_ends_in_generate_however_the_delimiter_is_spelled(model):
    tokens = torch.tensor([model.tokenizer.convert_tokens_to_ids(symbols) for symbols, _ in SPELLINGS])
    rollout = generate(model, [[70], [71, 72]] + [[73]] * 5, forced_ids=tokens, eos_token_id=[])
    for row, (symbols, end) in enumerate(SPELLINGS):
        thinking = len(symbols) - 1 if end is None else end  # the last token is never fed
        assert rollout.hybrid_mask[row].tolist() == [t < thinking for t in range(len(symbols))], symbols
        text = model.tokenizer.decode(tokens[row, : thinking + 1])
        assert ("####" in text) == (end is not None)
    logprobs, _ = replay(model, rollout)
    torch.testing.assert_close(logprobs, rollout.sample_logprobs, atol=1e-8, rtol=0)


def test_thinking_ends_in_generate_where_the_text_says_so(model):
    hashes = sorted(i for symbol, i in model.tokenizer.get_vocab().items() if "#" in symbol)
    with torch.no_grad():
        model.lm.lm_head.weight[hashes] = 0.05 * model.lm.lm_head.weight[hashes] + model.lm.lm_head.weight[hashes[0]]
    rollout = generate(
        model, [[70], [71, 72]], group_size=20, max_new_tokens=12, temperature=3.0, seed=1, eos_token_id=[]
    )
    ends = set()
    for ids, mask, length in zip(rollout.completion_ids, rollout.hybrid_mask, rollout.lengths.tolist(), strict=True):
        texts = [model.tokenizer.decode(ids[: t + 1], skip_special_tokens=True) for t in range(length)]
        expected = ["####" not in text for text in texts[:-1]]
        assert mask[:length].tolist() == [*expected, False]
        ends.add(sum(expected))
    assert len(ends) > 3


def test_ids_beyond_the_tokenizer_add_nothing():
    tokenizer = byte_level()
    size = len(tokenizer)
    two = tokenizer.convert_tokens_to_ids("##")
    automaton = delimiter_automaton("####", tokenizer, size + 3)
    assert thinks(automaton, [two, size, size + 2, two]) == [True, True, True, False]
    assert automaton.table.shape == (5, size + 3)
    small = delimiter_automaton("####", tokenizer, 100)  # a head smaller than the tokenizer
    assert small.table.shape == (5, 100)


def test_vocabulary_with_holes():
    tokenizer = Tokenizer(models.BPE({"0": 0, "#": 1, "##": 9}, [("#", "#")]))
    tokenizer.decoder = decoders.Fuse()
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    assert wrapped.decode([9, 9]) == "####"
    assert thinks(delimiter_automaton("####", wrapped, 10), [9, 9]) == [True, False]


def test_delimiter_beyond_ascii_is_refused():
    with pytest.raises(ValueError, match="not ASCII"):
        delimiter_automaton("→", byte_level(), 10)


# ---- errors ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("delimiter", ["", []])
def test_empty_delimiter(delimiter):
    with pytest.raises(ValueError, match="the delimiter is empty"):
        delimiter_automaton(delimiter, byte_level(), 10)


def test_text_needs_a_tokenizer():
    with pytest.raises(ValueError, match="needs a tokenizer"):
        delimiter_automaton("####", None, 10)
