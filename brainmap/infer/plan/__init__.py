"""How a volume is divided into blocks, and what a block reads and infers. Pure geometry."""
