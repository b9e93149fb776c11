"""The crowd: tiles of brains, the site where people click on them, and the way back into the detector."""
