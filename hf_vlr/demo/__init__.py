"""What a model sees, in a browser: recognition, free questions, classes taught by a description."""
