"""exo: one ring of everyday machines that runs large language models together."""

__version__ = "1.0.0"
