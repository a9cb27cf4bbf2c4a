"""Rollouts to look at: one HTML file with every token, what it was mixed with, and how far the gate opened."""

from hrpo.inspection.show import inspect as inspect
