"""Attention and linear products that are written for packs, decoded rows and LoRA."""
