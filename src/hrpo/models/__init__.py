"""Models on disk: names, loading, adapters, settings, quantization, and whether a model can be used at all.

May import `storage`, `config`, `gate`, `latent` and `common`.
"""
