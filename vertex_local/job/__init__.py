"""A job as the API describes it: its file read and checked, settings, machines, images, and where its buckets lie here."""
