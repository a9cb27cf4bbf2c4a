"""Sampling, and what a Rollout holds and tells."""

import dataclasses

import pytest
import torch
from models import DELIMITER, EOS, PROMPTS, SAMPLER, VOCAB, random_model

from hrpo import Rollout, generate, latent_embedding
from hrpo.data import sample_key
from hrpo.engine.interface import DEFAULT
from hrpo.gate import mix_candidates
from hrpo.latent import LATENT_MODES
from hrpo.rollout import _inverse_cdf

G = 4


@pytest.fixture(scope="module")
def model():
    return random_model("llama")


def close(actual, expected, atol=1e-8):
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=actual.dtype), atol=atol, rtol=0)


# ---- arguments ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ([], {}, "prompt_ids"),
        ([[7], []], {}, "prompt_ids"),
        ([[7]], {"temperature": 0}, "temperature: must be above 0, got 0; use greedy"),
        ([[7]], {"temperature": -1.0, "greedy": True}, "temperature"),
        ([[7]], {"group_size": 0}, "group_size"),
        ([[7]], {"top_k": -1}, "top_k"),
        ([[7]], {"max_new_tokens": 0}, "max_new_tokens"),
        ([[7]], {"max_new_tokens": None}, "max_new_tokens"),
        ([[7]], {"forced_ids": torch.zeros(1, 0, dtype=torch.long)}, "max_new_tokens"),
        (
            [[7]],
            {"max_new_tokens": 64},
            "max_new_tokens: 64 after a prompt of 1 leave the model's context of 64 tokens",
        ),
        ([[7]], {"max_new_tokens": 10**6}, "max_new_tokens: 1000000 after"),
        ([[7]], {"max_new_tokens": 10**30}, "max_new_tokens: 1"),
        ([[7]], {"group_size": 10**9}, "group_size: 1,000,000,000 completions of up to 14 tokens keep"),
        ([[7]], {"delimiter": []}, "delimiter"),
        ([[7]], {"delimiter": "####"}, "tokenizer"),
    ],
)
def test_refused_arguments(model, prompts, options, message):
    with pytest.raises(ValueError, match=message):
        generate(model, prompts, **{**SAMPLER, **options})


@pytest.mark.parametrize("rows", [1, 3])
def test_refused_row_counts(model, rows):
    with pytest.raises(ValueError, match=f"sample_keys: 2 .* got {rows}"):
        generate(model, [[7], [8]], sample_keys=[1] * rows, **SAMPLER)


@pytest.mark.parametrize("rows", [1, 3])
def test_refused_forced_rows(model, rows):
    with pytest.raises(ValueError, match="forced_ids"):
        generate(model, [[7], [8]], forced_ids=torch.full((rows, 2), 7), **SAMPLER)


def test_top_k_beyond_the_vocabulary_takes_all(model):
    rollout = generate(model, PROMPTS, **{**SAMPLER, "top_k": 10 * VOCAB})
    assert rollout.support_ids.shape[2] == VOCAB
    close(rollout.support_probs[rollout.completion_mask.bool()].sum(1), torch.ones(int(rollout.lengths.sum())))


# ---- sampling -----------------------------------------------------------------------------------------------------


def test_sample_key_is_stable():
    assert sample_key(0, 1, 2) == 603432347784401458  # 8 bytes of BLAKE2b of "0/1/2", without the last bit
    assert len({sample_key("eval", seed, i) for seed in range(20) for i in range(50)}) == 1000


def test_seeds_and_keys(model):
    options = {**SAMPLER, "group_size": G}

    def tokens(**changes):
        rollout = generate(model, PROMPTS, **options, **changes)
        return [row[:n].tolist() for row, n in zip(rollout.completion_ids, rollout.lengths, strict=True)]

    first = tokens(seed=3)
    assert first == tokens(seed=3)
    assert first == tokens(sample_keys=[sample_key(3, b, g) for b in range(len(PROMPTS)) for g in range(G)])
    assert all(a != b for a, b in zip(first, tokens(seed=4), strict=True))
    assert all(len({tuple(row) for row in first[b * G : (b + 1) * G]}) == G for b in range(len(PROMPTS)))
    same = tokens(sample_keys=[5] * len(PROMPTS) * G)
    assert all(same[b * G : (b + 1) * G] == [same[b * G]] * G for b in range(len(PROMPTS)))


@pytest.mark.parametrize("latent_mode", ["hybrid", "discrete"])
def test_top_k_1_is_greedy(model, latent_mode):
    options = {**SAMPLER, "top_k": 1, "latent_mode": latent_mode}
    sampled = generate(model, PROMPTS, seed=8, **options)
    greedy = generate(model, PROMPTS, greedy=True, **options)
    assert sampled.completion_ids.tolist() == greedy.completion_ids.tolist()
    mask = sampled.completion_mask.bool()
    assert torch.equal(sampled.support_ids[mask][:, 0].long(), sampled.completion_ids[mask])
    assert sampled.hybrid_mask.any() == (latent_mode == "hybrid")
    # the latent of a single candidate is its embedding
    table = model.embedding_table()
    close(sampled.latents(table)[mask], table[sampled.completion_ids[mask]])


@pytest.mark.parametrize(("top_k", "critical"), [(8, 24.32), (0, 73.40)])  # chi-square: 7 and 40 degrees, p = .001
def test_samples_follow_the_distribution(model, top_k, critical):
    samples, prompt = 4000, PROMPTS[0]
    keys = [sample_key("distribution", i) for i in range(samples)]
    options = {**SAMPLER, "top_k": top_k, "max_new_tokens": 1}
    rollout = generate(model, [prompt], group_size=samples, sample_keys=keys, **options)
    with torch.no_grad():
        logits = model.lm(input_ids=torch.tensor([prompt])).logits[0, -1]
    scaled = logits / SAMPLER["temperature"]
    kept = scaled.topk(top_k or VOCAB).indices
    probs = torch.zeros(VOCAB, dtype=torch.float64)
    probs[kept] = scaled[kept].exp() / scaled[kept].exp().sum()
    counts = torch.bincount(rollout.completion_ids[:, 0], minlength=VOCAB)
    assert not counts[probs == 0].any()
    expected = samples * probs[kept]
    assert expected.min() > 5
    assert ((counts[kept] - expected) ** 2 / expected).sum() < critical
    close(rollout.sample_logprobs, logits.log_softmax(0)[rollout.completion_ids])  # of all tokens, at temperature 1
    shown = rollout.support_ids.shape[2]
    assert torch.equal(rollout.support_ids[0, 0].long(), kept[:shown])
    close(rollout.support_probs[0, 0], probs[kept[:shown]])


@pytest.mark.parametrize(("uniform", "index"), [(0.0, 1), (0.2, 1), (0.25, 3), (0.9, 3)])
def test_inverse_cdf(uniform, index):
    probs = torch.tensor([[0.0, 0.25, 0.0, 0.75, 0.0]])
    assert _inverse_cdf(probs, torch.tensor([uniform])).item() == index  # never one of probability 0


def test_inverse_cdf_of_a_draw_that_rounds_to_1():
    uniforms = torch.tensor([1 - 1e-8], dtype=torch.float64).to(torch.float32)
    assert uniforms.item() == 1
    assert _inverse_cdf(torch.tensor([[0.25, 0.75, 0.0]]), uniforms).item() == 1


def test_greedy_takes_the_likeliest_token_but_tempers_the_latent(model):
    rollout = generate(model, PROMPTS, greedy=True, **SAMPLER)
    mask = rollout.completion_mask.bool()
    assert torch.equal(rollout.support_ids[mask][:, 0].long(), rollout.completion_ids[mask])
    assert (rollout.support_probs[mask][:, 1] > 0).all()


# ---- what is fed --------------------------------------------------------------------------------------------------


def forced(model, rows, delimiter=(DELIMITER,), eos=EOS, prompts=((7, 9),), **changes):
    options = {**SAMPLER, "delimiter": list(delimiter), "eos_token_id": eos}
    ids = torch.tensor(rows)
    return generate(model, [list(row) for row in prompts], group_size=len(rows), forced_ids=ids, **options, **changes)


@pytest.mark.parametrize("compact", [True, False])
def test_masks_by_hand(model, compact):
    rows = [
        [7, 8, 9, 10],  # thinks to the end; the last token is not fed
        [7, DELIMITER, 9, 10],  # the delimiter is fed plainly, and all that follows
        [DELIMITER, 8, 9, 10],
        [7, 8, 2, 10],  # EOS is not fed, and what follows it is ignored
        [3, 8, 9, 10],
        [7, 8, 9, 4],
    ]
    rollout = forced(model, rows, options=dataclasses.replace(DEFAULT, compact=compact))
    assert rollout.hybrid_mask.int().tolist() == [
        [1, 1, 1, 0],
        [1, 0, 0, 0],
        [0, 0, 0, 0],
        [1, 1, 0, 0],
        [0, 0, 0, 0],
        [1, 1, 1, 0],
    ]
    assert rollout.completion_mask.tolist() == [[1] * 4, [1] * 4, [1] * 4, [1, 1, 1, 0], [1, 0, 0, 0], [1] * 4]
    assert rollout.completion_ids.tolist() == [*rows[:3], [7, 8, 2, EOS[0]], [3] + [EOS[0]] * 3, rows[5]]
    assert rollout.lengths.tolist() == [4, 4, 4, 3, 1, 4]
    assert rollout.truncated(EOS).tolist() == [True, True, True, False, False, False]
    assert rollout.truncated([2]).tolist() == [True, True, True, False, True, True]
    assert not rollout.sample_logprobs[~rollout.completion_mask.bool()].any()
    _, a = model.gate(model.embed(rollout.completion_ids), rollout.latents(model.embedding_table()))
    close(rollout.gate_mean, torch.where(rollout.hybrid_mask, a.mean(2), 1.0).detach())


def test_a_delimiter_of_several_ids(model):
    rollout = forced(model, [[5, 5, 6, 7, 8], [5, 7, 6, 5, 8]], delimiter=[5, 6])
    assert rollout.hybrid_mask.int().tolist() == [[1, 1, 0, 0, 0], [1, 1, 1, 1, 0]]


@pytest.mark.parametrize(
    ("eos", "lengths"), [(None, [2, 4]), (3, [4, 3]), ([3], [4, 3]), ([2, 3], [2, 3]), ([], [4, 4])]
)
def test_end_tokens(model, eos, lengths):
    rows = [[7, 2, 8, 9], [7, 8, 3, 9]]
    assert forced(model, rows, eos=eos).lengths.tolist() == lengths  # None: the generation config's, 2


def test_generation_stops_at_any_end_token(model):
    rollout = generate(model, PROMPTS, group_size=8, seed=3, **SAMPLER)
    ends = set()
    for ids, length in zip(rollout.completion_ids.tolist(), rollout.lengths.tolist(), strict=True):
        assert not set(ids[: length - 1]) & set(EOS)
        assert ids[length - 1] in EOS or length == SAMPLER["max_new_tokens"]
        assert ids[length:] == [EOS[0]] * (len(ids) - length)
        ends |= set(ids[:length]) & set(EOS)
    assert ends == set(EOS)


@pytest.mark.parametrize("top_k", [25, 0])
def test_forced_ids_reproduce_a_rollout(model, top_k):
    options = {**SAMPLER, "top_k": top_k, "group_size": G}
    sampled = generate(model, PROMPTS, seed=3, **options)
    again = generate(model, PROMPTS, forced_ids=sampled.completion_ids, **options)
    for name in ("completion_ids", "completion_mask", "hybrid_mask"):
        assert torch.equal(getattr(again, name), getattr(sampled, name)), name
    close(again.sample_logprobs, sampled.sample_logprobs)
    close(again.gate_mean, sampled.gate_mean)
    other = generate(model, PROMPTS, forced_ids=sampled.completion_ids, latent_mode="discrete", **options)
    assert not other.hybrid_mask.any()
    assert (other.gate_mean == 1).all()
    assert not torch.allclose(other.sample_logprobs, sampled.sample_logprobs, atol=1e-3)


def test_forced_ids_after_an_end_token_are_ignored(model):
    rows = [[7, 2, -100, -100], *[[7, 8, 9, 10]] * 8]  # one finished row in nine is not dropped
    rollout = forced(model, rows)
    assert rollout.lengths.tolist() == [2, *[4] * 8]
    assert rollout.completion_ids[0].tolist() == [7, 2, EOS[0], EOS[0]]


# ---- the latents --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 4, 1024])
def test_mix_candidates_is_the_latent_of_the_scattered_distribution(chunk):
    torch.manual_seed(0)
    table = torch.randn(VOCAB, 6, dtype=torch.float64)
    ids = torch.stack([torch.randperm(VOCAB)[:5] for _ in range(6)]).view(2, 3, 5)
    probs = torch.rand(2, 3, 5, dtype=torch.float64)
    probs /= probs.sum(2, keepdim=True)
    dense = torch.zeros(2, 3, VOCAB, dtype=torch.float64).scatter(2, ids, probs)
    weights = LATENT_MODES["hybrid"].weigh(probs)
    close(mix_candidates(ids.int(), weights, table, chunk), latent_embedding(dense, table), 1e-12)


def test_mix_candidates_by_hand():
    table = torch.tensor([[1.0, 0.0], [0.0, 1.0], [9.0, 9.0]])
    weights = LATENT_MODES["hybrid"].weigh(torch.tensor([[[0.6, 0.8], [0.0, 0.0]]]))
    latents = mix_candidates(torch.tensor([[[0, 1], [2, 0]]]), weights, table)
    close(latents, [[[0.6, 0.8], [0.0, 0.0]]], 1e-6)  # norm 1; nothing sampled: 0, not NaN


def test_dense_latents_equal_those_of_all_candidates(model):
    options = {**SAMPLER, "group_size": G, "seed": 3}
    dense = generate(model, PROMPTS, **{**options, "top_k": 0})
    assert dense.support_ids.shape[2] == 20  # for display
    table = model.embedding_table()
    again = generate(model, PROMPTS, forced_ids=dense.completion_ids, **{**options, "top_k": VOCAB})
    mixed = dense.hybrid_mask
    assert torch.equal(mixed, again.hybrid_mask)
    close(dense.latents(table)[mixed], again.latents(table)[mixed])
    assert not dense.latents(table).requires_grad
    assert not again.latents(table).requires_grad


# ---- a hand-made rollout --------------------------------------------------------------------------------------------


def by_hand() -> Rollout:
    """Two prompts of 1 and 3 tokens, two completions each, of 2, 1 | 4, 3 tokens; EOS is 2."""
    mask = torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1], [1, 1, 1, 0]])
    gate_mean = torch.ones(4, 4)
    gate_mean[0, 0], gate_mean[2, 0], gate_mean[2, 1] = 0.6, 0.8, 0.0
    return Rollout(
        prompt_ids=torch.tensor([[0, 0, 7], [7, 8, 9]]),
        prompt_mask=torch.tensor([[0, 0, 1], [1, 1, 1]]),
        completion_ids=torch.tensor([[11, 2, 0, 0], [2, 0, 0, 0], [13, 14, 15, 16], [17, 18, 2, 0]]),
        completion_mask=mask,
        hybrid_mask=gate_mean < 1,
        sample_logprobs=-torch.arange(16.0).view(4, 4),
        support_ids=torch.arange(32).view(4, 4, 2).int(),
        support_probs=torch.full((4, 4, 2), 0.5),
        gate_mean=gate_mean,
        group_size=2,
        temperature=0.5,
        top_k=2,
    )


def test_lengths_and_truncation():
    rollout = by_hand()
    assert len(rollout) == 4
    assert rollout.lengths.tolist() == [2, 1, 4, 3]
    assert rollout.truncated([2]).tolist() == [False, False, True, False]
    assert rollout.truncated([2, 16]).tolist() == [False] * 4
    assert rollout.truncated([]).tolist() == [True] * 4


def test_hidden_ratio():
    rollout = by_hand()
    close(rollout.hidden_ratio(), (0.8 + 0.6 + 1.0) / 3, 1e-6)  # sqrt(1 - .6^2), sqrt(1 - .8^2), sqrt(1 - 0)
    discrete = dataclasses.replace(
        rollout, hybrid_mask=torch.zeros_like(rollout.hybrid_mask), gate_mean=torch.ones(4, 4)
    )
    assert discrete.hidden_ratio() == 0


@pytest.mark.parametrize(
    ("first", "last", "prompts", "group_size", "length"),
    [
        (0, 4, [[0, 0, 7], [7, 8, 9]], 2, 4),
        (0, 2, [[7]], 2, 2),  # one group, its padding gone
        (2, 4, [[7, 8, 9]], 2, 4),
        (1, 2, [[7]], 1, 1),
        (3, 4, [[7, 8, 9]], 1, 3),
        (1, 4, [[0, 0, 7], [7, 8, 9], [7, 8, 9]], 1, 4),  # across groups each row brings its prompt
        (0, 3, [[0, 0, 7], [0, 0, 7], [7, 8, 9]], 1, 4),
    ],
)
def test_select(first, last, prompts, group_size, length):
    whole = dataclasses.replace(by_hand(), dense_latents=torch.arange(48.0).view(4, 4, 3))
    part = whole.select(first, last)
    assert part.prompt_ids.tolist() == prompts
    assert part.prompt_mask.tolist() == [[int(token > 0) for token in row] for row in prompts]
    assert (part.group_size, part.temperature, part.top_k, len(part)) == (group_size, 0.5, 2, last - first)
    for field in dataclasses.fields(Rollout):
        value = getattr(whole, field.name)
        if isinstance(value, torch.Tensor) and not field.name.startswith("prompt"):
            assert torch.equal(getattr(part, field.name), value[first:last, :length]), field.name


@pytest.mark.parametrize(
    ("budget", "ranges"),
    [
        (1000, [(0, 4)]),
        (14, [(0, 4)]),  # the groups cost 1 + 3 and 3 + 7
        (13, [(0, 2), (2, 4)]),
        (10, [(0, 2), (2, 4)]),
        (9, [(0, 2), (2, 3), (3, 4)]),  # the second is cut; its rows cost 3 + 4 and 3 + 3
        (4, [(0, 2), (2, 3), (3, 4)]),
        (3, [(0, 1), (1, 2), (2, 3), (3, 4)]),
        (0, [(0, 1), (1, 2), (2, 3), (3, 4)]),  # one at least
    ],
)
def test_micro_batches(budget, ranges):
    assert list(by_hand().micro_batches(budget)) == ranges


@pytest.mark.parametrize(("bounds", "budget"), [((1, 100), 10), ((20, 100), 20), ((1, 9), 9)])
def test_a_budget_that_cuts_no_group(bounds, budget):
    assert by_hand().whole_groups(*bounds) == budget  # the groups cost 1 + 3 and 3 + 7


def test_micro_batches_of_part_groups_stay_within_their_group():
    rows = torch.arange(12) // 6  # two prompts, six completions each
    mask = by_hand().completion_mask[rows]  # of 2 and 1 tokens
    rollout = dataclasses.replace(
        by_hand(), completion_ids=torch.zeros(12, 4), completion_mask=mask, prompt_mask=torch.ones(2, 3), group_size=6
    )
    assert list(rollout.micro_batches(24)) == [(0, 12)]  # the groups cost 3 + 12 and 3 + 6
    assert list(rollout.micro_batches(23)) == [(0, 6), (6, 12)]
    assert list(rollout.micro_batches(14)) == [(0, 5), (5, 6), (6, 12)]
    assert list(rollout.micro_batches(8)) == [(0, 2), (2, 4), (4, 6), (6, 11), (11, 12)]


def test_groups():
    rollout = by_hand()
    assert rollout.groups([0, 1]) is rollout
    second = rollout.groups([1])
    assert second.prompt_ids.tolist() == [[7, 8, 9]]
    assert second.completion_ids.tolist() == [[13, 14, 15, 16], [17, 18, 2, 0]]
    assert second.lengths.tolist() == [4, 3]
    assert rollout.groups([1, 0]).completion_ids.tolist() == rollout.completion_ids[[2, 3, 0, 1]].tolist()
