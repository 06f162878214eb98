"""BERT and RoBERTa encoders and their weights."""
