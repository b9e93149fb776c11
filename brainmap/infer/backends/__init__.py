"""Where the network runs: one module for each runtime."""
