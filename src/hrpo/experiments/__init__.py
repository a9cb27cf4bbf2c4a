"""Several arms and several seeds under one budget, and their comparison.

May import `training`, `evaluation` and `reports`.
"""
