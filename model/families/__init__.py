"""One small file a family of models."""
