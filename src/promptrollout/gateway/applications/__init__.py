"""For applications that call the model themselves: render, OFREP, usage, feedback. May import pipeline."""
