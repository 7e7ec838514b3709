"""What models, decoders and servers are worth, measured: speed and load now; infilling, tasks and reports to come."""
