"""Dashboards at Weights & Biases: what they show, and how they are saved."""
