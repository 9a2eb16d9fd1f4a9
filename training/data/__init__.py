"""What stages learn from: prepared slices, stacks and label maps, and how they are drawn, painted and corrupted."""
