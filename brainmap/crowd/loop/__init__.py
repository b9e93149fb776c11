"""From clicks to a better detector: rounds, simulated crowds, studies of sampling, the demo."""
