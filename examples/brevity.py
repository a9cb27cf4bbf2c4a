"""A reward of one's own beside a task's: task.rewards {correct: 1.0, examples/brevity.py:brevity: 0.1}."""


def brevity(completions, **columns):
    """From 1 for an empty completion down to 0 for 400 characters and more."""
    return [max(0.0, 1 - len(text) / 400) for text in completions]
