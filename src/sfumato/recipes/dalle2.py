"""DALL-E 2: a contrastive embedding, a prior from text to image embedding, and a decoder (Ramesh et al. 2022)."""
