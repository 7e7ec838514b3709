"""Words that every floor speaks: vocabulary, attention, canvas, step, denoiser, seeds, errors."""
