"""What was measured, typed."""
