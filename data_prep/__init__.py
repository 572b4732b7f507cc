"""Raw click logs to dataset directories, out of core."""
