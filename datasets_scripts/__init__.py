"""One builder per dataset; each is run, and makes a Parquet dataset."""
