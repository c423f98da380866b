"""bigru-asr: speech recognition with a bidirectional GRU and CTC."""
