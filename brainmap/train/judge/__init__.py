"""How good a detector is: its scores, its calibration, and whether another one is better."""
