"""One brain from image to table: what was asked for, detection, registration, counts per region."""
