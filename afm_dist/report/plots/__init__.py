"""The report's figures. Importing any module below this one imports matplotlib."""
