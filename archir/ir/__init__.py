"""archir."""
