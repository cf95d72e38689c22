"""Healing: what truncation lost is won back by imitating the dense model, without labels."""
