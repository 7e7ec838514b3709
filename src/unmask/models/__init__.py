"""One backbone, a table of families, folders to models and back."""
