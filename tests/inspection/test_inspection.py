"""`hrpo inspect` and `inspect(rollout)`: what the page holds. How it behaves: test_inspection_browser.py."""

import math
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from evaluated import evaluate, save
from inspected import EXAMPLES, GOLD, HOSTILE, QUESTIONS, TASK, WRITTEN, blocks, both_pages, write, writing_model
from models import byte_level
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from hrpo import HybridCausalLM, generate, inspect
from hrpo.cli.main import main
from hrpo.evaluation.text_quality import is_mixed, scripts_of
from hrpo.inspection.record import LEAST, SHOWN
from hrpo.inspection.tokens import groups, token_pieces
from hrpo.inspection.vocabulary import gates_of

HYBRID, DISCRETE = 0, 1  # columns


@pytest.fixture(scope="module")
def model():
    return writing_model()


@pytest.fixture(scope="module")
def made(model):
    rollouts, page = both_pages(model)
    return rollouts, page, blocks(page.html)


# ---- what is said of completions ---------------------------------------------------------------------------------


def test_summaries(made):
    rollouts, _, data = made
    index = data["index"]
    assert [column["label"] for column in index["columns"]] == ["hybrid", "discrete"]
    assert index["problems"] == [{"question": q, "gold": g} for q, g in zip(QUESTIONS, GOLD, strict=True)]
    hybrid, discrete = index["summaries"]
    assert [row["text"] for row in hybrid] == WRITTEN["hybrid"]
    assert [row["strict"] for row in hybrid] == [True, True, False, False, False]
    assert [row["lenient"] for row in hybrid] == [True, True, False, False, True]
    assert [row["reward"] for row in hybrid] == [1, 1, 0, 0, 0]
    assert [row["strict"] for row in discrete] == [False, True, False, False, True]
    assert [row["length"] for row in hybrid] == rollouts["hybrid"].lengths.tolist()
    assert [row["manyScripts"] for row in hybrid] == [False, False, True, False, False]
    assert hybrid[2]["scripts"] == ["Cyrillic", "Han", "Latin"]
    assert not any(row["mixed"] or row["ratio"] for row in discrete)
    share, low, high = index["columns"][HYBRID]["strict"]
    assert share == 0.4
    assert 0 < low < share < high < 1
    rollout = rollouts["hybrid"]
    assert index["columns"][HYBRID]["ratio"] == pytest.approx(rollout.hidden_ratio().item(), abs=1e-4)
    assert sum(row["mixed"] for row in hybrid) == rollout.hybrid_mask.sum()


def test_records_are_the_rollout(made):
    rollouts, _, data = made
    for column, rollout in enumerate(rollouts.values()):
        for n, length in enumerate(rollout.lengths.tolist()):
            record = data[f"record-{column}-{n}"]
            assert record["ids"] == rollout.completion_ids[n, :length].tolist()
            first = 0
            for t, count in enumerate(record["counts"]):
                a, probs = rollout.gate_mean[n, t].item(), rollout.support_probs[n, t]
                if rollout.hybrid_mask[n, t]:
                    assert record["ratio"][t] == pytest.approx(1e4 * math.sqrt(1 - a * a), abs=0.5001)
                else:
                    assert record["ratio"][t] == -1
                logprob = rollout.sample_logprobs[n, t].item()
                assert record["probability"][t] == pytest.approx(1e4 * math.exp(logprob), abs=0.5001)
                entropy = -sum(p * math.log(p) for p in probs.tolist() if p)
                assert record["entropy"][t] == pytest.approx(1e3 * entropy, abs=0.5001)
                assert count == min(SHOWN, int((probs >= LEAST).sum()))
                assert record["candidates"][first : first + count] == rollout.support_ids[n, t, :count].tolist()
                weights = torch.tensor(record["weights"][first : first + count]) / 1e4
                torch.testing.assert_close(weights, probs[:count].float(), atol=5.001e-5, rtol=0)
                first += count
            assert first == len(record["candidates"]) == len(record["weights"])


def test_the_ends_of_colours(made):
    _, _, data = made
    ratios = [ratio for n in range(5) for ratio in data[f"record-0-{n}"]["ratio"] if ratio >= 0]
    assert data["index"]["range"] == [min(ratios), max(ratios)]
    assert min(ratios) < max(ratios)


def test_thinking_ends_with_the_delimiter(model, made):
    rollouts, _, data = made
    for column, rollout in enumerate(rollouts.values()):
        for n in range(5):
            record = data[f"record-{column}-{n}"]
            texts = [model.tokenizer.decode(record["ids"][: t + 1]) for t in range(len(record["ids"]))]
            written = [t for t, text in enumerate(texts) if "####" in text]
            assert record["end"] == (written[0] if written else -1)
            if column == HYBRID and written:
                assert not rollout.hybrid_mask[n, written[0] :].any()


@pytest.mark.parametrize("name", ["hybrid", "discrete"])
def test_without_a_model(made, name):
    """Ids instead of texts, no verdicts; where thinking ended shows in what was fed."""
    rollouts, _, whole = made
    rollout = rollouts[name]
    data = blocks(inspect(rollout).html)
    assert set(data) == {"index", *(f"record-0-{n}" for n in range(5))}
    assert "strict" not in data["index"]["summaries"][0][0]
    for n in range(5):
        expected = whole[f"record-{HYBRID}-{n}"]["end"] if name == "hybrid" else -1
        assert data[f"record-0-{n}"]["end"] == expected


def test_questions_without_a_task(model, made):
    problems = blocks(inspect(made[0]["hybrid"], model).html)["index"]["problems"]
    assert [problem["question"] for problem in problems] == QUESTIONS


def test_samples_of_a_problem(model):
    rollout = generate(model, [model.tokenizer.encode("2+2?")], group_size=3, max_new_tokens=6)
    index = blocks(inspect(rollout, model, task=TASK, examples=EXAMPLES[:1]).html)["index"]
    assert (index["groupSize"], len(index["problems"]), len(index["summaries"][0])) == (3, 1, 3)


def test_rollouts_of_other_prompts(model, made):
    with pytest.raises(ValueError, match="same prompts"):
        inspect({"a": made[0]["hybrid"], "b": write(model, ["1"])}, model)
    with pytest.raises(ValueError, match="examples: 5 prompts"):
        inspect(made[0]["hybrid"], model, task=TASK, examples=EXAMPLES[:2])


# ---- the file ----------------------------------------------------------------------------------------------------


def test_nothing_written_becomes_html(made):
    _, page, data = made
    assert HOSTILE in data["index"]["summaries"][HYBRID][1]["text"]
    assert "<img" not in page.html
    assert page.html.count("</script") == page.html.count("<script") == len(data) + 1
    assert not any(word in page.html for word in ("мир", "你好"))  # data is ASCII, whatever the file is read as


def test_no_address_in_it():
    folder = Path(__file__).parents[2] / "src" / "hrpo" / "inspection"
    text = "".join((folder / f"page.{kind}").read_text() for kind in ("html", "css", "js"))
    addresses = [word for word in text.split() if "//" in word and not word.startswith("//")]
    assert addresses == ['"http://www.w3.org/2000/svg";']  # a name, which nothing is fetched from
    assert "innerHTML" not in text


def test_the_same_rollouts_make_the_same_file(model, made, tmp_path):
    rollouts, page, _ = made
    again = inspect(rollouts, model, task=TASK, examples=EXAMPLES)
    assert again.html == page.html
    again.save(tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text() == page.html


def test_in_a_notebook(made):
    shown = made[1]._repr_html_()
    assert shown.startswith("<iframe ")
    assert shown.count("<") == 2  # the page is an attribute of the frame
    assert shown.count('"') == 2 * 4


# ---- tokens ------------------------------------------------------------------------------------------------------


def test_pieces_of_bytes():
    tokenizer = byte_level()
    pieces = token_pieces(tokenizer, len(tokenizer) + 2)
    ids = tokenizer.encode("é你 a\n####")
    assert [pieces[token] for token in ids] == [
        [0xC3],
        [0xA9],
        [0xE4],
        [0xBD],
        [0xA0],
        " ",
        "a",
        "\n####",
    ]
    assert pieces[-2:] == ["", ""]
    assert pieces[tokenizer.eos_token_id] == "<eos>"
    assert groups(ids, pieces) == [(0, 2, "é"), (2, 3, "你")]
    assert groups(ids[1:], pieces) == [(1, 3, "你")]  # cut off on the left
    assert groups(ids[:4], pieces) == [(0, 2, "é")]  # and on the right
    assert groups([ids[2], ids[2], ids[3], ids[5]], pieces) == []
    assert groups([], pieces) == []


def test_pieces_of_sentencepiece():
    vocabulary = [("<unk>", 0.0), ("0", -1.0), ("▁a", -1.0), *((f"<0x{byte:02X}>", -5.0) for byte in range(256))]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=0, byte_fallback=True))
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    pieces = token_pieces(PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>"), 259)
    assert pieces[2] == " a"
    assert pieces[3 + 0xE4] == [0xE4]
    assert pieces[3 + 0x41] == "A"
    assert groups([3 + byte for byte in "é你".encode()], pieces) == [(0, 2, "é"), (2, 3, "你")]


@pytest.mark.parametrize(
    ("text", "scripts", "mixed"),
    [
        ("2+2=4", [], False),
        ("two", ["Latin"], False),
        ("naïve café", ["Latin"], False),
        ("ответ two", ["Cyrillic", "Latin"], True),
        ("これは漢字とカタカナ", ["Han", "Hiragana", "Katakana"], False),  # Japanese
        ("漢字 한글", ["Han", "Hangul"], False),  # Korean
        ("한글 カタカナ", ["Hangul", "Katakana"], True),
        ("角 άλφα", ["Greek", "Han"], True),
        ("so x = π/2 and 角 α", ["Han", "Latin"], True),
        ("so x = 2πr and θ", ["Latin"], False),
        ("१२३ × ∞ 😀 «»", [], False),  # no letters
        ("ᏣᎳᎩ", ["other"], False),
    ],
)
def test_scripts(text, scripts, mixed):
    assert scripts_of(text) == scripts
    assert is_mixed(scripts) is mixed


# ---- the vocabulary ----------------------------------------------------------------------------------------------


def test_gates_of_a_vocabulary(model, monkeypatch):
    monkeypatch.setattr("hrpo.inspection.vocabulary.CHUNK", 100)
    counts = []
    a, i = gates_of(model, counts.append)
    assert counts == [100, 100, model.vocab_size - 200]
    rollout = write(model, WRITTEN["hybrid"])
    where = rollout.hybrid_mask
    assert where.any()
    torch.testing.assert_close(rollout.gate_mean[where], torch.tensor(a).double()[rollout.completion_ids[where]])
    embeds = model.embed(torch.arange(model.vocab_size))
    zero, one = (model.gate(embeds, torch.full_like(embeds, value)) for value in (0.0, 1.0))
    expected = ((one[0] - zero[0]) / torch.sqrt(1 - one[1] ** 2 + 1e-8)).mean(1)  # out is linear in i h
    torch.testing.assert_close(torch.tensor(i).double(), expected, atol=1e-6, rtol=0)


def test_the_map_on_the_page(model, made):
    gates = made[2]["map-0"]
    a, i = gates_of(model)
    shown = (1 - (torch.tensor(gates["ratio"]).double() / 1e5) ** 2).sqrt()
    torch.testing.assert_close(shown, torch.tensor(a).double(), atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.tensor(gates["input"]) / 1e4, torch.tensor(i), atol=5.1e-5, rtol=0)
    assert [column["map"] for column in made[2]["index"]["columns"]] == [0, -1]
    assert "map-1" not in made[2]


def test_no_map_of_a_gate_that_was_not_trained():
    model = HybridCausalLM.from_pretrained("tiny", latent_mode="discrete")
    rollout = generate(model, [[3, 4]], max_new_tokens=4)
    assert "map-0" not in blocks(inspect(rollout, model).html)


# ---- the command -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    return {mode: save(folder / mode, mode, seed) for seed, mode in enumerate(("hybrid", "discrete"))}


@pytest.mark.parametrize(("how", "words"), [("greedy", []), ("sampled", ["--sample"])])
def test_the_command_answers_as_an_evaluation_does(trained, tmp_path, monkeypatch, capsys, how, words):
    monkeypatch.chdir(tmp_path)
    Path("page.html").write_text("an older one")
    checkpoints = list(trained.values())
    main(["inspect", "--checkpoint", *checkpoints, "--task", "arithmetic", "-n", "6", *words, "--out", "page.html"])
    assert capsys.readouterr().out.endswith("page.html\n")
    assert [path.name for path in Path().iterdir()] == ["page.html"]
    data = blocks(Path("page.html").read_text())
    evaluate(*checkpoints, problems=6, samples=1)
    for column, mode in enumerate(trained):
        rows = pq.read_table(f"out/answers/{column}-{mode}/arithmetic-{how}.parquet").to_pylist()
        shown = data["index"]["summaries"][column]
        assert len(rows) == len(shown) == 6
        for row, summary in zip(rows, shown, strict=True):
            assert summary["text"] == row["completion"]
            for name in ("strict", "lenient", "length", "mixed"):
                assert summary[name] == row[name]
            assert summary["cut"] == row["truncated"]
            assert summary["ratio"] / 1e4 == pytest.approx(row["hidden_ratio"], abs=1.1e-4)
    assert {"map-0", "tokens-0"} <= set(data)
    assert not {"map-1", "tokens-1"} & set(data)  # no trained gate; the same vocabulary


def test_two_modes_of_a_checkpoint(trained, tmp_path):
    out = tmp_path / "page.html"
    words = ["--latent_mode", "own,discrete", "-n", "12", "--sample", "--out", str(out)]
    main(["inspect", "--checkpoint", trained["hybrid"], *words])
    index = blocks(out.read_text())["index"]
    assert [column["label"] for column in index["columns"]] == ["hybrid", "hybrid (discrete)"]
    assert [column["map"] for column in index["columns"]] == [0, -1]
    assert [column["mixed"] > 0 for column in index["columns"]] == [True, False]


def test_all_candidates(model):
    """With top_k = 0 the page shows the likeliest, as the rollout keeps them."""
    rollout = write(model, WRITTEN["hybrid"], top_k=0)
    record = blocks(inspect(rollout, model).html)["record-0-0"]
    assert max(record["counts"]) <= SHOWN
    assert record["ids"] == rollout.completion_ids[0, : rollout.lengths[0]].tolist()
