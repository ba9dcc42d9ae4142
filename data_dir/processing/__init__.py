"""From raw files to arrays: readers, merging, the audit, PPG windows."""
