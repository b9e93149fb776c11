"""What regions have in common over animals: correlations, modules, and patterns that groups differ in."""
