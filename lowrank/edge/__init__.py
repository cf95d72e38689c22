"""Graph to graph: types of weights, fused operators, many sizes in one file, and other file formats."""
