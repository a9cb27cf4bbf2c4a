"""Put made-up words into alphabetical order. An answer is right where its metric reaches 1."""

import random

system = "Put the words into alphabetical order. Think, then write #### and the words, with spaces between them."


def train(seed, count=2000):
    rng, rows = random.Random(f"words/{seed}"), []
    for _ in range(count):
        words = ["".join(map(rng.choice, ("bdklmrst", "aeiou", "nprs", "aeo"))) for _ in range(4)]
        rows.append({"prompt": "Words: " + " ".join(words), "gold": " ".join(sorted(words))})
    return rows


test = train("test", 200)


def metric(completions, gold, **columns):  # the share of words in their places
    pairs = [(text.rpartition("####")[2].split(), right.split()) for text, right in zip(completions, gold)]
    return [sum(map(str.__eq__, said, right)) / max(len(said), len(right)) for said, right in pairs]


def reward(completions, gold, **columns):
    return [m * (text.count("####") == 1) for m, text in zip(metric(completions, gold), completions)]
