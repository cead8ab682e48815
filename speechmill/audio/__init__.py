"""Audio as bytes and as samples: decoding of anything, FLAC, sampling rates, loudness."""
