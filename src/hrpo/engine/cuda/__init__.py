"""The accelerator of CUDA devices: joined products, attention without padding, decode steps as graphs.

All of it is PyTorch's own kernels, in fewer calls. May import the engine's interface and what that may; nobody imports
it, and the engine works without it.
"""
