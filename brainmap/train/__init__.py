"""Making the detector: simulated tissue, network, losses, training, calibration, export."""
