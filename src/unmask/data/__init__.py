"""From files to batches: documents, a held-out split, tokens on disk, packed rows, a loader that resumes by number."""
