"""The folder of a run: its checkpoints, verified and pruned, its logs, its lock, and what it was begun with.

May import `config` and `common`.
"""
