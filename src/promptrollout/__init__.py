"""Progressive delivery for prompts on Kubernetes."""

__version__ = "0.1.0"
