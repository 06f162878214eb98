"""Figures of runs for papers: PNG, PDF and the numbers behind each as CSV."""
