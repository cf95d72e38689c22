"""Where people already work: what other packages need to know of lowrank."""
