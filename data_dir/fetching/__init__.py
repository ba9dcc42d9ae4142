"""Raw files: where they come from and how they are unpacked."""
