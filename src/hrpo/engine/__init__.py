"""How a model computes: packed groups or padded batches, prompts once and then a token a row, the head in parts.

May import `model`, `data` and what lies below them; `cpu` is plugged in and imported by nobody.
"""
