"""Break every formula once and see a test fail."""
