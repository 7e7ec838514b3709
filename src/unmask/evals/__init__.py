"""What models and decoders are worth, measured: speed now; infilling, tasks and reports to come."""
