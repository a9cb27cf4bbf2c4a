"""What surrounds the training step: set-up, the run from start to report, preflight, monitoring, trackers.

May import the story (`trainer` and below), `storage` and `reports`.
"""
