"""What a raw format is: one module per format."""
