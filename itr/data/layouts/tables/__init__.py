"""Tables of image-caption pairs: CSV, TSV, JSON, Parquet."""
