"""Chores that know nothing of the method: errors, files, locks, signals, the console, statistics, several processes.

May import nothing of ours.
"""
