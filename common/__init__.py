"""What every part may use: files that appear in one piece, hashes, tables as text, the style of all figures."""
