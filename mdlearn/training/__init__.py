"""From labelled frames to a potential."""
