"""What one would do without factors: pruned weights, and a student with half of the layers."""
