"""recllm: post-train language models into recommenders on the Hugging Face stack.

The package is a house of floors (see docs/ARCHITECTURE.md): a module imports its own package and lower
floors only. Importing `recllm` itself loads nothing heavy.
"""

__version__ = "0.1.0"
