"""Run folders: the names of their files, and how they are written, read back and shown."""
