"""Tables, plots and the report of a run.

May import `storage` and `common`.
"""
