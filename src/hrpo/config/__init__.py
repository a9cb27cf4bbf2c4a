"""Every setting, its range, and how a settings file is read.

May import `common`.
"""
