"""What runs the work: Ray, its tasks, the machine, the console."""
