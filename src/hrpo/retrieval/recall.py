"""Recall@k: how often what is needed is among the first k passages. Three measures, each over its own questions.

- answer: an accepted answer occurs in a passage's text, word by word, up to case (DPR's `has_answer`). Questions
  answered by yes or no are left out: the words occur anywhere.
- paragraph: of the paragraphs that the data mark as needed, the share whose text was found, up to spaces and case.
  Only a corpus that has the very paragraphs can reach it.
- title: of the titles of these paragraphs, the share among the titles found; for corpora cut another way.
"""

import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from hrpo.tasks.base import normalized

DEPTHS = (1, 2, 3, 5, 10, 20, 50, 100)
ANSWER, PARAGRAPH, TITLE = "answer", "paragraph", "title"


def marked(row: Any) -> list[dict[str, str]]:
    """Return the paragraphs (title, text) that a row marks as needed; none where its form has no marks.

    HotpotQA's and 2WikiMultiHopQA's `supporting_facts`, as published or as the Hub has them; IRCoT's `is_supporting`;
    the passage within a prompt (`Context: ...`).

    Raises:
        TypeError: a title or a text is none.

    """
    paragraphs = _marked(row) if isinstance(row, dict) else []
    if not all(isinstance(text, str) for paragraph in paragraphs for text in paragraph.values()):
        raise TypeError("the title and the text of a paragraph must be text")
    return paragraphs


def _marked(row: dict[str, Any]) -> list[dict[str, Any]]:
    if "supporting_facts" in row:
        facts, context = row["supporting_facts"], row["context"]
        titles = facts["title"] if isinstance(facts, dict) else [title for title, _ in facts]
        pairs = zip(context["title"], context["sentences"], strict=True) if isinstance(context, dict) else context
        return [{"title": title, "text": "".join(sentences)} for title, sentences in pairs if title in titles]
    if "contexts" in row:
        chosen = [paragraph for paragraph in row["contexts"] if paragraph["is_supporting"]]
        return [{"title": paragraph["title"], "text": paragraph["paragraph_text"]} for paragraph in chosen]
    prompt = row.get("context", "")
    if prompt.startswith("Context: "):
        return [{"title": "", "text": prompt.removeprefix("Context: ").rpartition("\n\nQuestion: ")[0]}]
    return []


def ranks(
    golds: Sequence[str], needed: Sequence[Mapping[str, str]], passages: Sequence[Mapping[str, str]]
) -> dict[str, list[float]]:
    """Return, for each measure that applies to a question, where (from 0) what it needs was found; inf is nowhere."""
    found: dict[str, list[float]] = {}
    if not {gold.casefold() for gold in golds} & {"yes", "no"}:
        wanted = [words for gold in golds if (words := _words(gold))]
        hits = (at for at, passage in enumerate(passages) if _occurs(wanted, _words(passage["text"])))
        found[ANSWER] = [next(hits, float("inf"))]
    for measure, field in ((PARAGRAPH, "text"), (TITLE, "title")):
        texts = dict.fromkeys(normalized(paragraph[field]) for paragraph in needed if paragraph[field])
        places: dict[str, float] = {}
        for at, passage in enumerate(passages):
            places.setdefault(normalized(passage[field]), at)
        if texts:
            found[measure] = [places.get(text, float("inf")) for text in texts]
    return found


def recall(questions: Sequence[Sequence[float]], k: int) -> float:
    """Return the mean over questions of the share found among the first k."""
    return sum(sum(rank < k for rank in places) / len(places) for places in questions) / len(questions)


def _words(text: str) -> str:
    """Return words and marks, each with a space on both sides, as DPR's tokenizer cuts them."""
    import regex

    text = unicodedata.normalize("NFD", text).lower()
    return "".join(f" {word} " for word in regex.findall(r"[\p{L}\p{N}\p{M}]+|[^\p{Z}\p{C}]", text))


def _occurs(wanted: Sequence[str], text: str) -> bool:
    return any(words in text for words in wanted)
