"""What re-entries into the model changed: their sections of the page."""
