"""Audio as bytes and as samples: decode, encode, resample, loudness, voice activity. Knows nothing of corpora, batches or metrics."""
