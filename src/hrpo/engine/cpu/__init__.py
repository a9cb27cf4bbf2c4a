"""Acceleration on CPUs: compiled kernels, oneDNN, fused adapters, the allocator.

May import the engine's interface and what that may; nobody imports it, and the engine works without it.
"""
