"""The modes: what each feeds, by hand and against a naive loop, and the laws for all of them."""

import dataclasses
import math

import pytest
import torch
from architectures import ARCHITECTURES, check_law_1, config_of
from engines import CUDA_ON_CPU, SEVEN, STATIC, adapted, record, same_rollouts
from models import DELIMITER, PROMPTS, SAMPLER, VOCAB, plain_logprobs, random_lm, random_model
from test_laws import ARCHS, check_interesting, same

from hrpo import Rollout, generate, hrpo_loss, replay
from hrpo.engine.cuda import graphs
from hrpo.engine.interface import DEFAULT, REFERENCE
from hrpo.latent import LatentMode, mode_names, mode_of, nucleus

G = 4
MIXED = mode_of("hybrid", "hidden")
ABLATIONS = ("no_input_gate", "no_norm", "scalar_a")
MODES = {name: mode_of(name) for name in mode_names()}
REPLACED = ("swapped", "noise")
ELSEWHERE = ("hybrid", "discrete", *ABLATIONS, *REPLACED)
NEW = {**{name: mode for name, mode in MODES.items() if name not in ELSEWHERE}, "hybrid of hidden": MIXED}
every = pytest.mark.parametrize("mode", NEW.values(), ids=NEW.keys())
TRAINED = {name: mode for name, mode in NEW.items() if mode.trains}
trained = pytest.mark.parametrize("mode", TRAINED.values(), ids=TRAINED.keys())


def close(actual, expected, atol=1e-12):
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=actual.dtype), atol=atol, rtol=0)


# ---- by hand ------------------------------------------------------------------------------------------------------

P = torch.tensor([[0.5, 0.3, 0.2], [1.0, 0.0, 0.0]], dtype=torch.float64)


def test_weights_of_candidates():
    norm = math.sqrt(0.25 + 0.09 + 0.04)
    close(MODES["interpolation"].weigh(P), [[0.5 / norm, 0.3 / norm, 0.2 / norm], [1, 0, 0]])
    assert MODES["mixture_of_inputs"].weigh(P) is P
    close(dataclasses.replace(MODES["soft_thinking"], top_p=0.8).weigh(P), [[0.625, 0.375, 0], [1, 0, 0]])


@pytest.mark.parametrize(
    ("top_p", "expected"),
    [(0.1, [0, 1, 0]), (0.5, [0, 1, 0]), (0.51, [0, 0.625, 0.375]), (0.81, [0.2, 0.5, 0.3]), (1.0, [0.2, 0.5, 0.3])],
)
def test_nucleus(top_p, expected):
    close(nucleus(torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64), top_p), expected)


def test_nucleus_of_nothing():
    close(nucleus(torch.zeros(2, 3), 0.95), torch.zeros(2, 3))


def test_share_of_the_token_in_a_mixture_of_inputs():
    """w = (H p + (beta + 1 - H) y) / (beta + 1), arXiv:2505.14827, equation 5."""
    entropy = -(0.5 * math.log(0.5) + 0.3 * math.log(0.3) + 0.2 * math.log(0.2)) / math.log(3)
    for beta in (0.25, 1.0, 8.0):
        mode = dataclasses.replace(MODES["mixture_of_inputs"], beta=beta)
        share = mode.token_share(P)
        assert share.shape == (2, 1)
        y = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)
        expected = (entropy * P[0] + (beta + 1 - entropy) * y) / (beta + 1)
        close((1 - share[0]) * P[0] + share[0] * y, expected)
        close(share[1], [1.0])  # nothing was in doubt: the token alone
    close(MODES["mixture_of_inputs"].token_share(torch.ones(1, 1, dtype=torch.float64)), [[1.0]])
    uniform = torch.full((1, 4), 0.25, dtype=torch.float64)
    close(MODES["mixture_of_inputs"].token_share(uniform), [[0.5]])  # 1 - 1 / (1 + 1)


def test_feed():
    gate = random_model("llama").gate
    e, h = torch.randn(2, 3, 24, dtype=torch.float64)
    for mode in (MODES["hybrid"], MIXED):
        for one, other in zip(mode.feed(gate, e, h, torch.zeros(3, 1)), gate(e, h), strict=True):
            same(one, other, 0)
    share = torch.tensor([[0.0], [0.25], [1.0]], dtype=torch.float64)
    fed, a = MODES["mixture_of_inputs"].feed(gate, e, h, share)
    close(fed, torch.stack([h[0], 0.25 * e[1] + 0.75 * h[1], e[2]]))
    assert a is share


def test_which_latent_is_mixed_in():
    assert mode_of("hybrid", "interpolation") == MODES["hybrid"]
    assert mode_of("hybrid", "hidden") == dataclasses.replace(MODES["hybrid"], source="hidden")
    assert mode_of("interpolation", "hidden") == MODES["interpolation"]
    assert [name for name, mode in MODES.items() if not mode.trains] == [
        *("soft_thinking", "mixture_of_inputs", "swapped", "noise")
    ]


# ---- a naive loop -------------------------------------------------------------------------------------------------


@torch.no_grad()
def naive(model, prompt: list[int], mode: LatentMode, top_k: int, tokens: int) -> tuple[list[int], list[float]]:
    """Greedy decoding without a cache, written from the papers: token ids and their log-probabilities."""
    lm, tau = model.lm, SAMPLER["temperature"]
    table = lm.get_input_embeddings()(torch.arange(VOCAB))
    inputs, ids, logprobs, thinking = [*table[prompt]], [], [], True
    while len(ids) < tokens:
        out = lm(inputs_embeds=torch.stack(inputs).unsqueeze(0), output_hidden_states=True)
        logits, state = out.logits[0, -1], out.hidden_states[-1][0, -1]  # the last one is after the final norm
        token = int(logits.argmax())
        ids.append(token)
        logprobs.append(logits.log_softmax(0)[token].item())
        thinking = thinking and token != DELIMITER
        p = torch.zeros(VOCAB, dtype=torch.float64)
        kept = logits.topk(top_k or VOCAB).indices
        p[kept] = (logits[kept] / tau).softmax(0)
        e = table[token]
        if mode.source == "hidden":
            h = state
        elif mode.source == "interpolation":
            h = p @ table / p.norm()
        elif mode == MODES["soft_thinking"]:
            order = p.argsort(descending=True)
            enough = int((p[order].cumsum(0) < 0.95).sum()) + 1
            h = p[order[:enough]] @ table[order[:enough]] / p[order[:enough]].sum()
        else:  # mixture of inputs
            entropy = -(p[kept] * p[kept].log()).sum() / math.log(len(kept))
            h = (entropy * p @ table + (2 - entropy) * e) / 2
        if mode == MIXED:
            h, _ = model.gate(e, h)
        elif mode.gated:
            gate = model.gate
            r, i = torch.sigmoid(gate.reset_gate(e)), torch.sigmoid(gate.input_gate(e))
            a = (-8 * torch.log1p(torch.exp(-gate.Lambda)) * r).exp()
            if mode == MODES["scalar_a"]:
                a = a.log().mean().exp() * torch.ones_like(a)
            if mode == MODES["no_input_gate"]:
                i = torch.ones_like(i)
            if mode == MODES["no_norm"]:
                h = p @ table
            h = a * e + (1 - a**2 + 1e-8).sqrt() * (i * h)
        inputs.append(h if thinking else e)
    return ids, logprobs


@pytest.mark.sampled
@pytest.mark.parametrize("top_k", [25, 0])
@pytest.mark.parametrize("arch", ["llama", "gpt2", "gemma3"])  # an untied and a tied embedding, and a scaled one
@pytest.mark.parametrize("mode", [*NEW.values(), *(MODES[name] for name in ABLATIONS)], ids=[*NEW, *ABLATIONS])
def test_feeds_what_the_papers_say(mode, arch, top_k):
    model = random_model(arch)
    thought = 0
    for prompt in (*PROMPTS, [12, 30], [40, 3, 22]):
        ids, logprobs = naive(model, prompt, mode, top_k, SAMPLER["max_new_tokens"])
        options = {**SAMPLER, "top_k": top_k, "eos_token_id": []}
        rollout = generate(model, [prompt], greedy=True, latent_mode=mode, **options)
        assert rollout.completion_ids[0].tolist() == ids
        close(rollout.sample_logprobs[0], logprobs, 1e-8)
        thought += int(rollout.hybrid_mask.sum())
    assert thought > 5


# ---- what a rollout keeps -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("top_k", [25, 5, 0])
def test_hidden_states_are_kept_whole_and_20_candidates_shown(top_k):
    model = random_model("llama")
    for mode in (MODES["hidden"], MIXED):
        options = {**SAMPLER, "group_size": G, "seed": 3, "top_k": top_k}
        rollout = generate(model, PROMPTS, latent_mode=mode, **options)
        shown = min(20, top_k or VOCAB)
        assert rollout.support_ids.shape[2] == rollout.support_probs.shape[2] == shown
        assert rollout.latents(model.embedding_table()) is rollout.dense_latents
        mask = rollout.completion_mask.bool()
        total = rollout.support_probs[mask].sum(1)
        assert (total < 1 - 1e-6).all() if top_k != 5 else (total > 1 - 1e-9).all()
        if top_k == 25:
            with pytest.raises(ValueError, match=r"policy: sampler needs 25 candidates; .* keeps 20"):
                replay(model, rollout, policy="sampler")
        else:
            replay(model, rollout, policy="sampler")


def test_the_weight_of_the_token_is_recorded():
    model = random_model("llama")
    options = {**SAMPLER, "group_size": G, "seed": 3}
    alone = generate(model, PROMPTS, latent_mode="interpolation", **options)
    assert not alone.gate_mean[alone.hybrid_mask].any()
    assert alone.hidden_ratio() == 1
    mixed = generate(model, PROMPTS, latent_mode="mixture_of_inputs", **options)
    share = mixed.mode.token_share(mixed.support_probs)[mixed.hybrid_mask].squeeze(1)
    close(mixed.gate_mean[mixed.hybrid_mask], share)
    assert 0.5 < share.min() < share.max() < 1
    assert (mixed.gate_mean[~mixed.hybrid_mask] == 1).all()


def test_soft_thinking_thinks_the_same_in_every_sample():
    """Only what follows the delimiter is sampled."""
    model = random_model("llama")
    model.lm.lm_head.weight.data[DELIMITER] *= 3  # so that it comes to be the likeliest
    options = {**SAMPLER, "eos_token_id": [], "latent_mode": "soft_thinking"}
    sampled = generate(model, PROMPTS, group_size=2 * G, seed=3, **options).completion_ids.tolist()
    greedy = generate(model, PROMPTS, greedy=True, **options).completion_ids.tolist()
    after = set()
    for n, row in enumerate(sampled):
        thought = row.index(DELIMITER) + 1 if DELIMITER in row else len(row)
        assert row[:thought] == greedy[n // (2 * G)][:thought]
        after.add((n // (2 * G), *row[thought:]))
    assert len(after) > len(PROMPTS)


def test_a_mode_with_values_of_ones_own():
    model = random_model("llama")
    options = {**SAMPLER, "greedy": True}
    nearly = dataclasses.replace(MODES["mixture_of_inputs"], beta=1e12)  # the sampled token outweighs all
    rollout = generate(model, PROMPTS, latent_mode=nearly, **options)
    discrete = generate(model, PROMPTS, latent_mode="discrete", **options)
    assert rollout.completion_ids.tolist() == discrete.completion_ids.tolist()
    close(rollout.sample_logprobs, discrete.sample_logprobs, 1e-8)


# ---- other latents than a completion's own ------------------------------------------------------------------------


@pytest.mark.parametrize("top_k", [25, 0])
def test_swapped_latents(top_k):
    model = random_model("llama")
    options = {**SAMPLER, "group_size": G, "seed": 3, "eos_token_id": [], "top_k": top_k}
    rollout = generate(model, PROMPTS, latent_mode="swapped", **options)
    own = generate(model, PROMPTS, latent_mode="hybrid", forced_ids=rollout.completion_ids, **options)
    # the first latents come from the prompts alone
    same(rollout.dense_latents[:, 0], own.latents(model.embedding_table())[:, 0].roll(1, dims=0))
    assert not torch.allclose(own.sample_logprobs, rollout.sample_logprobs, atol=1e-4)
    for one in (rollout, own):
        same(replay(model, one)[0], one.sample_logprobs)


def test_noise_in_place_of_latents():
    model = random_model("llama")
    options = {**SAMPLER, "group_size": G, "seed": 3, "eos_token_id": []}
    rollout = generate(model, PROMPTS, latent_mode="noise", **options)
    own = generate(model, PROMPTS, latent_mode="hybrid", forced_ids=rollout.completion_ids, **options)
    noise, latents = rollout.dense_latents[:, 0], own.latents(model.embedding_table())[:, 0]
    same(noise.norm(dim=1), latents.norm(dim=1))
    cosines = torch.cosine_similarity(noise, latents)
    assert cosines.abs().max() < 0.9
    assert len({round(cosine, 6) for cosine in cosines.tolist()}) > len(PROMPTS)
    same(replay(model, rollout)[0], rollout.sample_logprobs)
    for rows in (1, 2 * G):  # drawn by key: batching changes nothing
        same_rollouts(
            where_fed(rollout), where_fed(generate(model, PROMPTS, latent_mode="noise", max_rows=rows, **options)), 1e-8
        )


# ---- the laws -----------------------------------------------------------------------------------------------------


def rolled_out(model, mode: LatentMode, **options) -> tuple[Rollout, Rollout]:
    """Two rollouts: sampled, and fed with the tokens that "hybrid" sampled, which are known to be of all kinds."""
    options = {**SAMPLER, "group_size": G, **options}
    tokens = generate(model, PROMPTS, seed=3, latent_mode="hybrid", **options).completion_ids
    forced = generate(model, PROMPTS, latent_mode=mode, forced_ids=tokens, **options)
    return forced, generate(model, PROMPTS, seed=3, latent_mode=mode, **options)


def where_fed(rollout: Rollout) -> Rollout:
    """Stored latents count where they were fed."""
    if rollout.dense_latents is None:
        return rollout
    return dataclasses.replace(rollout, dense_latents=rollout.dense_latents * rollout.hybrid_mask.unsqueeze(2))


@pytest.mark.sampled
@every
@pytest.mark.parametrize("arch", ARCHS)
@torch.no_grad()
def test_replay_equals_rollout(arch, mode):
    model = random_model(arch)
    rollouts = [*rolled_out(model, mode), *rolled_out(model, mode, top_k=0)]
    for forced in rollouts[::2]:
        check_interesting(forced)
    for rollout in rollouts:
        assert rollout.mode == mode
        logprobs, reference = replay(model, rollout)
        same(logprobs, rollout.sample_logprobs)
        same(reference, plain_logprobs(model.lm, rollout))
        assert not torch.allclose(logprobs, reference, atol=1e-3), "the latents change nothing"
        same(replay(model, rollout, options=REFERENCE)[0], logprobs)
        for first, last in [(0, 4), (4, 12), (1, 3), (5, 6), (3, 9)]:  # whole groups, parts, across groups
            part = rollout.select(first, last)
            t = part.completion_ids.shape[1]
            for whole, piece in zip((logprobs, reference), replay(model, part), strict=True):
                same(piece, whole[first:last, :t])


@pytest.mark.parametrize("name", ABLATIONS)
def test_ablations_replay_and_learn(name):
    """The gradient of the gate is that of the parts that are left."""
    model = random_model("llama")
    rollout = generate(model, PROMPTS, seed=3, latent_mode=name, group_size=G, **SAMPLER)
    for techniques in (DEFAULT, REFERENCE):
        model.zero_grad()
        logprobs, _ = replay(model, rollout, options=techniques)
        same(logprobs.detach(), rollout.sample_logprobs)
        logprobs.sum().backward()
        assert model.gate.Lambda.grad.abs().max() > 0
        learns = model.gate.input_gate.weight.grad
        assert (learns is None) == (name == "no_input_gate")


@pytest.mark.sampled
@every
@pytest.mark.parametrize("arch", ARCHS)
@torch.no_grad()
def test_replay_in_float32(arch, mode):
    model = random_model(arch, torch.float32)
    for rollout in rolled_out(model, mode):
        logprobs, reference = replay(model, rollout)
        same(logprobs, rollout.sample_logprobs, 1e-4)
        same(reference, plain_logprobs(model.lm, rollout), 1e-4)


@pytest.mark.parametrize("name", ["granite", "cohere", "gemma2", "minicpm3", "modernbert-decoder", "opt"])
def test_hidden_states_where_logits_are_scaled_or_capped_after_the_head(name):
    kind = ARCHITECTURES[name]
    model = random_model(config_of(kind), kind.dtype)
    for mode in ("hidden", "interpolation"):
        check_law_1(model, PROMPTS, kind.atol, latent_mode=mode)
    rollout = generate(model, [[7, 9, 11]], latent_mode="hidden", greedy=True, **SAMPLER)
    with torch.no_grad():
        read = []
        hook = model.bare_lm.get_output_embeddings().register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
        model.lm(input_ids=torch.tensor([[7, 9, 11]]))
        hook.remove()
    assert rollout.hybrid_mask[0, 0]
    same(rollout.dense_latents[0, 0], read[0][0, -1])


@pytest.mark.sampled
@every
@pytest.mark.parametrize("arch", ARCHS)
def test_the_plain_path_decodes_alike(arch, mode):
    model = adapted(arch)
    options = {**SAMPLER, "group_size": G, "seed": 3, "latent_mode": mode}
    fast = where_fed(generate(model, PROMPTS, **options))
    for techniques in (REFERENCE, STATIC, dataclasses.replace(DEFAULT, compact=False)):
        same_rollouts(fast, where_fed(generate(model, PROMPTS, options=techniques, **options)), 1e-8)


@pytest.mark.sampled
@every
@pytest.mark.parametrize("arch", ARCHS)
def test_batching_changes_nothing(arch, mode):
    model = random_model(arch)
    options = {**SAMPLER, "latent_mode": mode}
    keys = [1000 + n for n in range(len(PROMPTS) * G)]
    together = where_fed(generate(model, PROMPTS, group_size=G, sample_keys=keys, **options))
    for rows in (1, 2 * G):
        some = generate(model, PROMPTS, group_size=G, sample_keys=keys, max_rows=rows, **options)
        same_rollouts(together, where_fed(some), 1e-8)
    for n in range(0, len(keys), 3):
        alone = generate(model, [PROMPTS[n // G]], sample_keys=[keys[n]], **options)
        length = alone.completion_ids.shape[1]
        assert together.completion_ids[n, :length].tolist() == alone.completion_ids[0].tolist()
        same(together.sample_logprobs[n, :length], alone.sample_logprobs[0])


@pytest.mark.sampled
@pytest.mark.parametrize("max_rows", [1, 2 * G, None])
@pytest.mark.parametrize("mode", [MODES["hidden"], MIXED], ids=["hidden", "hybrid of hidden"])
def test_hidden_states_of_captured_steps(mode, max_rows, monkeypatch):
    model = adapted("llama")
    options = {**SAMPLER, "group_size": G, "seed": 3, "latent_mode": mode, "max_rows": max_rows}
    expected = where_fed(generate(model, SEVEN, **options))
    monkeypatch.setattr(graphs, "capture", record)
    monkeypatch.setattr(graphs, "new_pool", lambda: None)
    same_rollouts(expected, where_fed(generate(model, SEVEN, options=CUDA_ON_CPU, **options)), 1e-8)


# ---- gradients ----------------------------------------------------------------------------------------------------


@pytest.mark.sampled
@trained
@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
@pytest.mark.parametrize("arch", ARCHS)
def test_gradients_packed_and_plain(arch, lora, mode):
    model = adapted(arch) if lora else random_model(arch)
    rollout = generate(model, PROMPTS, group_size=G, seed=3, latent_mode=mode, **SAMPLER)
    advantages = torch.linspace(-1, 1, len(rollout), dtype=torch.float64)

    def gradients(**options):
        model.zero_grad()
        logprobs, reference = replay(model, rollout, **options)
        loss, _ = hrpo_loss(logprobs, reference, advantages, rollout.completion_mask, beta=0.1)
        loss.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    plain = gradients(options=REFERENCE)
    assert any("lora_B" in name if lora else "lm." in name for name in plain)
    gates = [name for name, gradient in plain.items() if name.startswith("gate.") and gradient.any()]
    assert len(gates) == (5 if mode.gated else 0)
    for options in ({}, {"recompute": True}):
        fast = gradients(**options)
        assert plain.keys() == fast.keys()
        for name, gradient in plain.items():
            assert (fast[name] - gradient).norm() <= 1e-5 * max(gradient.norm().item(), 1e-3), name


@trained
def test_gradients_against_differences(mode):
    """Latents are constants of the replay: the gradient is that of log-probs with the same inputs."""
    model = random_model("gpt2")
    rollout = generate(model, PROMPTS, group_size=G, seed=3, latent_mode=mode, **SAMPLER)
    weights = torch.linspace(-1, 1, rollout.completion_mask.numel(), dtype=torch.float64).view_as(rollout.gate_mean)

    def objective():
        logprobs, _ = replay(model, rollout, with_reference=False)
        return (weights * logprobs).sum()

    objective().backward()
    generator = torch.Generator().manual_seed(0)
    parameters = [p for p in model.parameters() if p.grad is not None]
    directions = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]
    expected = sum((p.grad * d).sum() for p, d in zip(parameters, directions, strict=True))
    step, values = 1e-5, []
    with torch.no_grad():
        if rollout.dense_latents is None:  # made from W_e, which moves
            rollout = dataclasses.replace(rollout, dense_latents=rollout.latents(model.embedding_table()))
        for sign in (1, -2):
            for p, d in zip(parameters, directions, strict=True):
                p.add_(sign * step * d)
            values.append(objective())
    close((values[0] - values[1]) / (2 * step), expected.item(), 1e-5 * abs(expected.item()))


@torch.no_grad()
def test_the_reference_reads_no_latents():
    model = random_model("llama")
    rollout = generate(model, PROMPTS, group_size=G, seed=3, latent_mode="hidden", **SAMPLER)
    same(replay(model, rollout)[1], plain_logprobs(random_lm("llama"), rollout))
