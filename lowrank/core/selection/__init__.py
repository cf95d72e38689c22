"""Selection: from an Analysis and a Budget to a Plan."""
