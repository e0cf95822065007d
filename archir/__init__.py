"""archir: a compiler for neural architectures."""
