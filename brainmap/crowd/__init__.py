"""The crowd: from tiles to clicks in a browser, and back to ground truth."""
