"""Jobs that hang, and the flight-recorder dumps they leave. Knows the formats, nothing of the code under test."""
