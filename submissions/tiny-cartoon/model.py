"""`tiny` with the weights and the vocabulary that lie in this folder."""

from submissions.tiny.model import load

__all__ = ["load"]
