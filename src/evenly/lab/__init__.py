"""The lab: one question per experiment, on real data, judged by rule."""
