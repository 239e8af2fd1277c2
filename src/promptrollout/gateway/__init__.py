"""The serving pods: route, render, call the model, check, count."""
