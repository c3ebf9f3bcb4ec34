"""What a trained model answers: one question per file, each a function of ``self: Core``."""
