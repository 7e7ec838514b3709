"""Many requests through one model: requests join and leave between forwards, and share each of them."""
