"""What models, decoders and servers are worth, measured: speed, load and infilling now; tasks and reports to come."""
