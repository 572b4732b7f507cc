"""What holds of any ``nn.Module``: its tensors by name, and running it without a trace."""
