"""Sharded checkpoints of Hugging Face, weight by weight: for models that are larger than memory."""
