"""Files as bytes hold them, of no format in particular: JSON streams, columns, packed files, pickles."""
