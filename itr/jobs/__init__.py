"""What a command does: training, evaluation, embedding, galleries."""
