"""Files, tables and named data sets, read as pairs and turned into batches."""
