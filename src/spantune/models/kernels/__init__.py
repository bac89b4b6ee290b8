"""Kernels: attention of packs and of decoded rows, linear layers with LoRA, and gated MLPs."""
