"""What a recording or a plan depends on besides its arguments, watched at every call."""
