"""How clean text is ruined: schedules of noise, laws for drawing its level, and the absorbing process."""
