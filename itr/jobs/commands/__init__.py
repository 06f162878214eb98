"""Commands of `itr` that work with a trained model: gallery, search, embed, ask, losses."""
