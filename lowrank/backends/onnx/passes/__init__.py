"""Passes over an exported graph: into the form that readers and tools expect."""
