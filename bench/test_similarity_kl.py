"""The similarity KL alone, its teacher constant: forward, backward and both, in turns with the others."""

from .losses import suite

cases, test_similarity_kl = suite("similarity_kl")
