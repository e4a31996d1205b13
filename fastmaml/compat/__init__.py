"""Drop-in doors for scripts written for learn2learn and higher."""
