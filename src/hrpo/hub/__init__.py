"""A checkpoint for others: export, model card, upload, and reading what the original release has trained.

May import `models` and `reports`.
"""
