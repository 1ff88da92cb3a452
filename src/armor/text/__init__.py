"""Text: where it comes from, and how it becomes token windows."""
