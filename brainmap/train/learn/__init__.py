"""The network and its training: samples, losses, loop, pre-training, fine-tuning, export."""
