"""What every part may use: files and folders that appear in one piece, tables as text."""
